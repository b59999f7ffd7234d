# insert.sh ROWS: a table with an index, filled in one transaction.
set -eu
sqlite3 insert.db "
    PRAGMA journal_mode = DELETE;
    CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER, kind INTEGER);
    CREATE INDEX item_price ON item(price);
    BEGIN;
    WITH RECURSIVE n(i, x) AS (
        SELECT 1, 1 UNION ALL SELECT i + 1, (x * 1103515245 + 12345) & 2147483647 FROM n LIMIT $1)
    INSERT INTO item SELECT i, printf('item %d of %d', i, x % 1000), x % 10007, x / 65536 % 97 FROM n;
    COMMIT;
    SELECT count(*), sum(price), max(name) FROM item;" | tail -n 1 > result
