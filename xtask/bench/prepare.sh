# Makes the files that workloads work on. Run once, natively, within the image: /mnt is the
# directory of the workloads' files.
set -eu
cat /usr/lib/python3.11/*.py | head -c 4000000 > /mnt/corpus
7z a -bso0 -bsp0 -mx5 -mmt1 /mnt/corpus.7z /mnt/corpus
sqlite3 /mnt/select.db "
    CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER, kind INTEGER);
    WITH RECURSIVE n(i, x) AS (
        SELECT 1, 1 UNION ALL SELECT i + 1, (x * 1103515245 + 12345) & 2147483647 FROM n LIMIT 50000)
    INSERT INTO item SELECT i, printf('item %d of %d', i, x % 1000), x % 10007, x / 65536 % 97 FROM n;
    CREATE INDEX item_price ON item(price);"
