//! Programs that people use every day, on a mount with default options.

use anyhow::{Context, Result, ensure};
use dfs_tests::{Cluster, Mount, bins, files, tools};

/// Runs a script with `$1` the mount in bash, where the first command that fails ends it.
fn bash(mount: &Mount, script: &str) -> Result<String> {
    files::run("bash", &["-euo", "pipefail", "-c", script, "bash", &mount.path().display().to_string()])
}

/// A cluster with one mount, if the programs are there.
fn start(programs: &[&str]) -> Result<Option<(Cluster, Mount)>> {
    for program in programs {
        if !tools::have(program)? {
            return Ok(None);
        }
    }
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    Ok(Some((cluster, mount)))
}

#[test]
fn archives_come_out_as_they_went_in() -> Result<()> {
    let Some((cluster, mut mount)) = start(&["tar", "zip", "unzip", "gzip"])? else { return Ok(()) };
    // Sources of this project: some hundred files in directories.
    let source = bins::repository().join("dfs-meta/src");
    files::sh("cp -a \"$1\" \"$2\"/src", &[&source, mount.path()])?;
    bash(
        &mount,
        r#"
        cd "$1"
        ln -s src link && ln src/lib.rs hard && mkfifo pipe
        tar -czf all.tar.gz src link hard pipe
        mkdir out && tar -xzf all.tar.gz -C out
        diff -r --no-dereference src out/src
        test "$(readlink out/link)" = src && test -p out/pipe && cmp hard out/hard
        tar --compare -zf all.tar.gz
        # Members are replaced in an archive that exists.
        tar -cf grown.tar src && echo more > extra && tar -rf grown.tar extra && tar -xOf grown.tar extra | grep -qx more
        zip -qr all.zip src && unzip -qt all.zip >/dev/null && mkdir unzipped && unzip -q all.zip -d unzipped
        diff -r src unzipped/src
        zip -q all.zip extra && zip -qd all.zip 'src/lib.rs' && unzip -p all.zip extra | grep -qx more
        "#,
    )?;
    mount.remount()?;
    files::same_tree(&source, &mount.join("out/src"))?;
    cluster.finish([mount])
}

#[test]
fn git_commits_clones_collects_and_checks() -> Result<()> {
    let Some((cluster, mount)) = start(&["git"])? else { return Ok(()) };
    let said = bash(
        &mount,
        r#"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        cd "$1" && git init -q -b main one && cd one
        for n in $(seq 60); do mkdir -p d$((n % 7)); seq $n $((n + 500)) > d$((n % 7))/f$n; done
        git add . && git commit -qm first
        for n in $(seq 8); do echo $n >> d$((n % 7))/f$n; git commit -qam "change $n"; done
        git checkout -qb side HEAD~4 && git mv d1 moved && git commit -qm moved && git rebase -q main
        git stash list && echo dirty >> moved/f1 && git stash -q && git stash pop -q && git checkout -q -- .
        git checkout -q main && git merge -q side
        git gc -q --aggressive --prune=now && git fsck --strict --no-progress
        cd .. && git clone -q one two && git clone -q --bare one three && cd two
        test -z "$(git status --porcelain)" && git fsck --no-progress
        echo pushed > new && git add new && git commit -qm new && git push -q ../three main
        git -C ../three log --format=%s -1 && git worktree add -q ../four && diff -r --exclude=.git . ../four && echo same
        "#,
    )?;
    ensure!(said.contains("new\nsame"), "{said}");
    cluster.finish([mount])
}

#[test]
fn a_project_is_built_once_and_then_what_changed() -> Result<()> {
    let Some((cluster, mount)) = start(&["gcc", "make", "ar"])? else { return Ok(()) };
    let said = bash(
        &mount,
        r#"
        cd "$1" && mkdir project && cd project
        for n in $(seq 12); do echo "int f$n(void) { return $n; }" > f$n.c; done
        { for n in $(seq 12); do echo "int f$n(void);"; done
          echo '#include <stdio.h>'
          echo 'int main(void) { printf("%d\n", f1() + f12()); return 0; }'; } > main.c
        printf 'all: main\nmain: main.o libf.a\n\tgcc -o $@ main.o libf.a\nlibf.a: %s\n\tar rcs $@ $^\n' \
            "$(seq -s ' ' -f f%g.o 12)" > Makefile
        make -s -j2 && ./main
        make -q && echo "nothing to do"
        echo 'int f12(void) { return 29; }' > f12.c
        ! make -q && make -s -j2 && ./main
        gcc -g -O2 -flto -o lto main.c f*.c && ./lto && strip lto && ./lto
        "#,
    )?;
    ensure!(said == "13\nnothing to do\n30\n30\n30\n", "{said}");
    cluster.finish([mount])
}

#[test]
fn databases_hold_in_every_journal_mode() -> Result<()> {
    let Some((cluster, mut mount)) = start(&["sqlite3"])? else { return Ok(()) };
    for mode in ["delete", "truncate", "persist", "wal"] {
        let said = bash(
            &mount,
            &format!(
                r#"
                cd "$1"
                sqlite3 {mode}.db "pragma journal_mode={mode}; create table t(a integer primary key, b text);"
                for n in 1 2 3; do
                    sqlite3 {mode}.db "begin; with recursive c(x) as (select 1 union all select x+1 from c where x<500)
                        insert into t(b) select hex(randomblob(40)) from c; commit;
                        update t set b = 'x' where a % 7 = 0; delete from t where a % 11 = 0;"
                done
                # Two processes at a time: one waits for the other.
                sqlite3 -cmd ".timeout 20000" {mode}.db "insert into t(b) values('a');" &
                sqlite3 -cmd ".timeout 20000" {mode}.db "insert into t(b) values('b');"
                wait
                sqlite3 {mode}.db "vacuum; pragma integrity_check; select count(*) > 1300 from t where 1;
                    select count(*) from t where b in ('a', 'b');"
                "#
            ),
        )
        .context(mode)?;
        ensure!(said == format!("{mode}\nok\n1\n2\n"), "{mode}: {said}");
    }
    mount.remount()?;
    let said = bash(&mount, "cd \"$1\"; for f in *.db; do sqlite3 $f 'pragma integrity_check'; done")?;
    ensure!(said == "ok\nok\nok\nok\n", "{said}");
    cluster.dfsctl_ok(&["fsck", "--verify"])?;
    cluster.finish([mount])
}

#[test]
fn editors_and_copiers_change_files_in_place() -> Result<()> {
    let Some((cluster, mount)) = start(&["vim", "rsync", "sed", "dd"])? else { return Ok(()) };
    let said = bash(
        &mount,
        r#"
        cd "$1" && seq 1000 > text && cp text text.before
        vim -u NONE -es -c 'set swapfile directory=. backup writebackup backupdir=.' -c '%s/^5$/five/' -c wq text </dev/null
        sed -n 5p text && test ! -e .text.swp
        sed -i 's/^7$/seven/' text && sed -n 7p text
        perl -pi -e 's/^9$/nine/' text 2>/dev/null || sed -i 's/^9$/nine/' text
        sed -n 9p text
        # In place, over the border of two chunks.
        dd if=/dev/urandom of=big bs=1M count=9 status=none && cp big big.want
        for file in big big.want; do
            printf patched | dd of=$file bs=1 seek=$((4 * 1048576 - 3)) conv=notrunc status=none
        done
        cmp big big.want
        dd if=big of=direct bs=1M oflag=direct status=none && dd if=direct bs=1M iflag=direct status=none | cmp - big
        mkdir remote && rsync -a text big remote/
        echo tail >> text && head -c 5000000 /dev/urandom >> big
        rsync -a --inplace text big remote/ && cmp text remote/text && cmp big remote/big
        head -c 100000 /dev/urandom >> big && rsync -a --append-verify big remote/ && cmp big remote/big
        sort -r text -o text && head -1 text && shuf text -o text && wc -l < text
        truncate -s 3000000 big && truncate -s 6000000 big && tail -c 3000000 big | tr -d '\0' | wc -c
        split -b 1M direct part. && cat part.* | cmp - direct && echo whole
        mv remote moved && mv moved/text /tmp/"dfs-tools-$$" && mv /tmp/"dfs-tools-$$" back && cmp back moved/text 2>/dev/null || test -s back
        "#,
    )?;
    ensure!(said == "five\nseven\nnine\ntail\n1001\n0\nwhole\n", "{said}");
    cluster.finish([mount])
}

#[test]
fn python_copies_maps_and_makes_temporary_files() -> Result<()> {
    let Some((cluster, mount)) = start(&["python3"])? else { return Ok(()) };
    let said = bash(
        &mount,
        r#"
        cd "$1" && python3 - <<'P'
import fcntl, mmap, os, pathlib, shutil, tempfile
os.mkdir("a")
data = os.urandom(5 << 20)
pathlib.Path("a/f").write_bytes(data)
shutil.copytree("a", "b")
shutil.copy2("a/f", "c")
assert pathlib.Path("b/f").read_bytes() == data == pathlib.Path("c").read_bytes()
with tempfile.TemporaryDirectory(dir=".") as d, tempfile.NamedTemporaryFile(dir=d) as t, tempfile.TemporaryFile(dir=".") as u:
    for f in (t, u):
        f.write(b"x" * 100_000); f.flush(); f.seek(0)
        assert f.read() == b"x" * 100_000
assert sorted(os.listdir(".")) == ["a", "b", "c"], os.listdir(".")
with open("c", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[1 << 20:(1 << 20) + 5] = b"hello"
    m.flush()
assert pathlib.Path("c").read_bytes()[1 << 20:][:5] == b"hello"
tmp = pathlib.Path("c.tmp"); tmp.write_text("new"); os.replace(tmp, "c")
assert pathlib.Path("c").read_text() == "new"
with open("lock", "w") as f:
    fcntl.lockf(f, fcntl.LOCK_EX); fcntl.flock(f, fcntl.LOCK_EX)
shutil.rmtree("a"); shutil.move("b", "moved")
print(shutil.disk_usage(".").total > 0, os.path.getsize("moved/f"))
P
        "#,
    )?;
    ensure!(said == "True 5242880\n", "{said}");
    cluster.finish([mount])
}
