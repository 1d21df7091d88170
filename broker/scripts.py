"""What the server does to tickets in one step: publish one's group, renew its lease, hand it back; and find them all.

Invariant: the first three act only on a ticket that is still pending, two of them only on the caller's own. Knows no
payloads.
"""

from __future__ import annotations

# First publisher wins: the group is added only if this call is the one that acknowledges the ticket. Also fences a
# client library's silent re-send of the same command.
PUBLISH = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  redis.call('INCR', KEYS[3])
  return false
end
redis.call('XDEL', KEYS[1], ARGV[2])
return redis.call('XADD', KEYS[2], '*', 'ticket_id', ARGV[3], 'payload', ARGV[4])
"""

# Renew what is still ours: XCLAIM alone would steal back a ticket that another generator has reclaimed meanwhile.
RENEW = """
local held = {}
for i = 3, #ARGV do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)  -- no stream, no tickets
  if pending[1] and pending[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    held[#held + 1] = ARGV[i]
  end
end
return held
"""

# Hand back: as idle as a lapsed ticket, with ARGV[6] deliveries (one or none) not counted against it.
GIVE_BACK = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if not pending[1] or pending[1][2] ~= ARGV[2] then return 0 end
local deliveries = pending[1][4] - ARGV[6]
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, ARGV[3], 'IDLE', ARGV[5], 'RETRYCOUNT', deliveries, 'JUSTID')
return 1
"""

# The only stream that is cut off at a length: an audit log, nothing hangs on its oldest lines. What goes is counted.
# Its first line has a full server refuse the script as it is queued, and the whole MULTI with it, like any command.
DEAD_LETTER = """#!lua
redis.call('XADD', KEYS[1], '*', 'kind', ARGV[2], 'ticket_id', ARGV[3], 'reason', ARGV[4], 'payload', ARGV[5])
local dropped = redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1])
if dropped > 0 then redis.call('INCRBY', KEYS[2], dropped) end
"""

# Forget consumers that have been silent for long and owe nothing. DELCONSUMER alone would destroy what they owe.
FORGET = """
local forgotten = 0
for _, pairs in ipairs(redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do  -- no stream, no consumers
  local consumer = {}
  for i = 1, #pairs, 2 do consumer[pairs[i]] = pairs[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    forgotten = forgotten + 1
  end
end
return forgotten
"""

# Where every ticket is, without its payload: entries nobody has claimed, entries in a generator's hands, groups. In
# pages, because a reply of all groups at once takes as much of the server's memory again as they do.
LOCATE = """
local claimed = {}
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000000)
for _, entry in ipairs(pending) do claimed[entry[1]] = true end
local places = {{}, {}, {}}
for at, stream in ipairs(KEYS) do
  local from = '-'
  while from do
    local page = redis.call('XRANGE', stream, from, '+', 'COUNT', 16)
    for _, entry in ipairs(page) do
      local place = places[at == 2 and 3 or claimed[entry[1]] and 2 or 1]
      for i = 1, #entry[2], 2 do
        if entry[2][i] == 'ticket_id' then place[#place + 1] = entry[2][i + 1] end
      end
    end
    from = page[16] and '(' .. page[16][1]
  end
end
return places
"""
