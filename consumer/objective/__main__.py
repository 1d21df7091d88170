"""`make objectives`: the table of presets."""

from consumer.objective.table import text

if __name__ == "__main__":
    print(text())
