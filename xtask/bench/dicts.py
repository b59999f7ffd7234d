"""Counts, sorts and joins words: dictionaries and strings in pure Python."""
import sys

state = 1
counts = {}
for _ in range(int(sys.argv[1])):
    state = state * 1103515245 + 12345 & 0x7FFFFFFF
    word = "w" + str(state >> 8 & 0xFFF)
    counts[word] = counts.get(word, 0) + 1
by_count = {}
for word, count in counts.items():
    by_count.setdefault(count, []).append(word)
lines = ["%d %s" % (count, " ".join(sorted(words))) for count, words in sorted(by_count.items())]
with open("result", "w") as file:
    print(len(counts), sum(counts.values()), len("\n".join(lines)), file=file)
