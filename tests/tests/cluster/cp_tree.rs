//! `cp -a` of a real tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

/// A tree that every Debian machine has, of some megabytes in a thousand files or more with links. `DFS_TEST_TREE` names
/// another one (scripts/soak.sh).
fn real_tree() -> Result<PathBuf> {
    if let Some(tree) = std::env::var_os("DFS_TEST_TREE") {
        return Ok(tree.into());
    }
    ["/usr/share/perl", "/usr/share/zoneinfo", "/usr/share/doc", "/etc"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_dir() && size_kib(path).is_ok_and(|kib| (1_000..60_000).contains(&kib)))
        .ok_or_else(|| anyhow::anyhow!("no tree of a good size below /usr/share"))
}

fn size_kib(path: &Path) -> Result<u64> {
    Ok(files::sh("du -sk \"$1\" | cut -f1", &[path])?.trim().parse()?)
}

#[test]
fn a_real_tree_goes_in_and_comes_out() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).storages(4).start()?;
    let mut mount = cluster.mount()?;
    let tree = real_tree()?;
    files::sh("cp -a \"$1\" \"$2\"/tree", &[&tree, mount.path()])?;
    files::same_tree(&tree, &mount.join("tree"))?;
    mount.remount()?;
    files::same_tree(&tree, &mount.join("tree"))?;
    // The link count of a directory is a matter of the file system: ext4 gives up counting, overlays say 1.
    files::same_attributes(&tree, &mount.join("tree"), "%p %y %m %U %G %T@ %n %l\\n", " d ")?;
    files::same_attributes(&tree, &mount.join("tree"), "%p %y %m %U %G %T@\\n", "")?;
    fs::remove_dir_all(mount.join("tree"))?;
    ensure!(files::names(mount.path())?.is_empty());
    cluster.finish([mount])
}

#[test]
fn tar_git_and_editors_work() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let script = "cd \"$1\" && mkdir src && seq 100000 > src/a && cp src/a src/b && tar cf t.tar src && \
                  mkdir out && tar xf t.tar -C out && cmp src/a out/src/a && gzip -k src/a && gzip -dc src/a.gz | cmp - src/b && \
                  sed -i 's/^1$/one/' src/b && head -1 src/b && sort -r src/a -o src/a && head -1 src/a";
    ensure!(files::sh(script, &[mount.path()])? == "one\n99999\n");
    if files::run("git", &["--version"]).is_ok() {
        let script = "cd \"$1\" && git init -q repo && cd repo && git config user.email a@b && git config user.name a && \
                      echo 1 > f && git add f && git commit -qm one && echo 2 >> f && git commit -qam two && \
                      git fsck --strict 2>&1 && git log --oneline | wc -l";
        let text = files::sh(script, &[mount.path()])?;
        ensure!(text.trim().ends_with('2'), "{text}");
    }
    cluster.finish([mount])
}
