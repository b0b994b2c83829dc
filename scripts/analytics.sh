#!/usr/bin/env bash
# Analytics tools on a fresh cluster of this machine: DuckDB, Apache Arrow and Polars write Parquet through one mount and read it
# through another one, which is read-only, and every result is compared with what was written.
#
#   scripts/analytics.sh
#
# The tools come from PyPI, into a directory that is removed afterwards.
. "$(dirname "$0")/lib.sh"

TOOLS=(duckdb==1.4.2 pyarrow==22.0.0 polars==1.35.2)

can_mount || die "without FUSE there is nothing to test"
need_pkg python3 python3
python3 -c 'import ensurepip' 2>/dev/null || install_pkg python3-venv
[ -x "$BIN/mount.dfs" ] && [ -x "$BIN/dfsctl" ] || build

dir=$(mktemp -d)
leave() {
    umount "$dir/ro" 2>/dev/null || true
    "$BIN/dfsctl" dev down --dir "$dir/cluster" >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap leave EXIT

note "getting ${TOOLS[*]}"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check "${TOOLS[@]}"

"$BIN/dfsctl" dev up --dir "$dir/cluster" --mount "$dir/rw" >/dev/null
mkdir "$dir/ro"
# shellcheck source=/dev/null # written by the cluster
"$BIN/mount.dfs" "$(. "$dir/cluster/env" && printf %s "$DFS_META_ADDRS")" "$dir/ro" -o ro
begun=$SECONDS
"$dir/venv/bin/python" - "$dir/rw" "$dir/ro" <<'PYTHON'
import os
import sys

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROWS = 2_000_000
rw, ro = sys.argv[1:]


def same(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: {got} instead of {wanted}")
    print(f"    {what}: {got}")


# DuckDB: one file, a directory of parts, a database file that is written in place, and spilling to the mount.
db = duckdb.connect(os.path.join(rw, "work.duckdb"))
db.execute(f"SET temp_directory = '{rw}/spill'")
db.execute(f"CREATE TABLE t AS SELECT i AS id, i % 100 AS part, hash(i) AS h, repeat('x', i % 20) AS s FROM range({ROWS}) r(i)")
wanted = db.execute("SELECT count(*), sum(id), bit_xor(h) FROM t").fetchone()
db.execute(f"COPY t TO '{rw}/one.parquet' (FORMAT parquet)")
db.execute(f"COPY t TO '{rw}/parts' (FORMAT parquet, PARTITION_BY (part))")
db.execute("UPDATE t SET s = 'changed' WHERE part = 7")
db.close()
question = "SELECT count(*), sum(id), bit_xor(h) FROM read_parquet('{}')"
reader = duckdb.connect()
same("DuckDB, one file", reader.execute(question.format(f"{ro}/one.parquet")).fetchone(), wanted)
same("DuckDB, parts", reader.execute(question.format(f"{ro}/parts/*/*.parquet")).fetchone(), wanted)
again = duckdb.connect(os.path.join(ro, "work.duckdb"), read_only=True)
same("DuckDB, its own file read-only", again.execute("SELECT count(*) FROM t WHERE s = 'changed'").fetchone(), (ROWS // 100,))
again.close()

# Arrow: a partitioned dataset, filters that read parts of files, and a file as a memory mapping.
table = pa.table({"id": pa.array(range(ROWS)), "part": pa.array([i % 10 for i in range(ROWS)])})
ds.write_dataset(table, f"{rw}/arrow", format="parquet", partitioning=["part"], max_rows_per_group=10_000, max_rows_per_file=100_000)
scanned = ds.dataset(f"{ro}/arrow", format="parquet", partitioning=["part"])
same("Arrow, rows", scanned.count_rows(), ROWS)
found = scanned.to_table(filter=(pc.field("part") == 3) & (pc.field("id") > ROWS // 2), columns=["id"])
same("Arrow, filtered", found.num_rows, len(range(ROWS)[ROWS // 2 + 3 :: 10]))
with pa.OSFile(f"{rw}/mapped.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
    writer.write_table(table)
with pa.memory_map(f"{ro}/mapped.arrow") as source:
    same("Arrow, memory mapping", pc.sum(pa.ipc.open_file(source).read_all()["id"]).as_py(), ROWS * (ROWS - 1) // 2)
pq.write_table(table, f"{rw}/replaced.parquet")
pq.write_table(table.slice(0, 10), f"{rw}/replaced.parquet")
same("Arrow, replaced", pq.read_table(f"{ro}/replaced.parquet").num_rows, 10)

# Polars: lazy scans of many files, and a result that is written as it is computed.
lazy = pl.scan_parquet(f"{ro}/parts/**/*.parquet", hive_partitioning=True)
same("Polars, sum", lazy.select(pl.col("id").sum()).collect().item(), wanted[1])
lazy.filter(pl.col("part") < 5).select("id").sink_parquet(f"{rw}/sunk.parquet")
same("Polars, sunk", pl.scan_parquet(f"{ro}/sunk.parquet").select(pl.len()).collect().item(), ROWS // 20)
same("Polars, CSV", (pl.DataFrame({"a": range(1000)}).write_csv(f"{rw}/a.csv"), pl.read_csv(f"{ro}/a.csv")["a"].sum())[1], 499_500)

for change in (lambda: open(f"{ro}/new", "w"), lambda: os.remove(f"{ro}/one.parquet")):
    try:
        change()
    except OSError as error:
        same("a change through the read-only mount", error.errno, 30)
    else:
        sys.exit("the read-only mount was changed")
PYTHON
note "analytics tools: everything came back as it was written, in $((SECONDS - begun)) s"
