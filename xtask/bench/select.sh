# select.sh LOOKUPS: so many look-ups by number and by an index, and some passes over the table.
set -eu
sqlite3 'file:/mnt/select.db?immutable=1' "
    WITH RECURSIVE n(i, x) AS (
        SELECT 1, 1 UNION ALL SELECT i + 1, (x * 1103515245 + 12345) & 2147483647 FROM n LIMIT $1)
    SELECT sum(a.price), sum(b.kind) FROM n
        JOIN item a ON a.id = n.x / 256 % 50000 + 1
        JOIN item b ON b.price = n.x / 512 % 10007;
    WITH RECURSIVE pass(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM pass LIMIT 1 + $1 / 10000)
    SELECT sum(c), max(name) FROM (
        SELECT kind, count(*) AS c, max(name) AS name FROM item, pass
        WHERE (price + pass.i) % 3 = 0 GROUP BY kind);" > result.lines
tr '\n' ' ' < result.lines > result
