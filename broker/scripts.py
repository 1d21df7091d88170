"""What the server does in one step: to tickets, to consumers, to policy versions and their leases.

Invariant: publishing, renewing and handing back act only on a ticket that is still pending, the last two only on the
caller's own; weights are changed by the run's only writer alone. Knows no payloads.
"""

from __future__ import annotations

# Tickets that nobody has had yet, of the first stream as many as there are slots for, of the next what is left of them;
# and how many there are, one or none a stream, that were handed back (to ARGV[4]) and wait for somebody to look.
CLAIM = """
local free, found, returned = tonumber(ARGV[3]), {}, 0
for at, stream in ipairs(KEYS) do
  local reply = free > 0 and redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', free, 'STREAMS', stream, '>')
  found[at] = reply and reply[1][2] or {}
  free = free - #found[at]
  returned = returned + #redis.call('XPENDING', stream, ARGV[1], '-', '+', 1, ARGV[4])
end
return {returned, found}
"""

# The oldest ticket whose lease has lapsed, with how often it was delivered. One whose entry is gone is no ticket: to
# claim it makes an end of it.
RECLAIM = """
while true do
  local lapsed = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', 1)[1]
  if not lapsed then return false end
  local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], lapsed[1])[1]
  if entry then return {entry, lapsed[4] + 1} end
end
"""

# First publisher wins: a group is added only if this call is the one that acknowledges its ticket. Also fences a
# client library's silent re-send of the same command. ARGV, from the second on: entry, ticket and payload of each.
PUBLISH = """
local first = {}
for i = 2, #ARGV, 3 do
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 0 then
    redis.call('INCR', KEYS[3])
    first[#first + 1] = 0
  else
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('XADD', KEYS[2], '*', 'ticket_id', ARGV[i + 1], 'payload', ARGV[i + 2])
    first[#first + 1] = 1
  end
end
return first
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

# The id of a stream's oldest entry, without what it carries: megabytes, of a group.
OLDEST = """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return first and first[1]
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

# Leases of policy versions. Marks are leases too (`!prune:3` holds version 3), so whoever reads the hash needs to know
# one format only.
LEASE = """
local mark = redis.call('HGET', KEYS[1], '!prune:' .. ARGV[2])
if mark and tonumber(string.match(mark, ' (.*)')) > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[4])
return 1
"""
MARK = """#!lua flags=allow-oom
local leased, marked = {}, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local version, expiry = string.match(all[i + 1], '(%d+) (.*)')
  local holds = (tonumber(expiry or '') or 0) > tonumber(ARGV[1])  -- a reader may have written anything
  if holds then leased[version] = true else redis.call('HDEL', KEYS[1], all[i]) end
end
for i = 3, #ARGV do
  if not leased[ARGV[i]] then
    redis.call('HSET', KEYS[1], '!prune:' .. ARGV[i], ARGV[i] .. ' ' .. ARGV[2])
    marked[#marked + 1] = tonumber(ARGV[i])
  end
end
return marked
"""

# Weights in Redis, and who may write them: the owner that the fence's mark names. KEYS: the mark, shipments, weights.
_OWNER = """
local owner = string.match(redis.call('GET', KEYS[1]) or '', '^%d+ %d+ (.*)$')
if owner ~= ARGV[1] then return 0 end
"""

# A chunk, of a shipment that is on record as unfinished from its first chunk on. It may be sent twice, the first time
# late: of a shipment that has appeared by then (ARGV[5] is its version) nothing is put on record again.
STORE = (
    _OWNER
    + """
local complete = redis.call('HGET', KEYS[4], ARGV[5])
if complete and string.find(complete, ARGV[2], 1, true) then return 1 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('SET', KEYS[3], ARGV[4])
return 1
"""
)

# A version appears, if all its chunks are there; the shipment that it replaces goes on record as one to be removed.
APPEAR = (
    _OWNER
    + """
for number = 0, ARGV[3] - 1 do
  if redis.call('EXISTS', ARGV[4] .. number) == 0 then return 0 end
end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[2], ARGV[7], ARGV[8]) end
redis.call('HSET', KEYS[3], ARGV[5], ARGV[6])
redis.call('HDEL', KEYS[2], ARGV[2])
return 1
"""
)

# A version is no more; its shipment goes on record as one to be removed. On a full server, too: it makes room.
RETIRE = (
    "#!lua flags=allow-oom"
    + _OWNER
    + """
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[4])
return 1
"""
)

# Chunks of a shipment, from ARGV[3] up to but not ARGV[4], are removed, and at last its record.
CLEAR = (
    "#!lua flags=allow-oom"
    + _OWNER
    + """
for number = ARGV[3], ARGV[4] - 1 do redis.call('UNLINK', ARGV[5] .. number) end
if ARGV[6] == '1' then redis.call('HDEL', KEYS[2], ARGV[2]) end
return 1
"""
)
