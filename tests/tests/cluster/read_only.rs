//! `-o ro`: every change is refused at once.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

#[test]
fn changes_are_refused() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let writer = cluster.mount()?;
    files::write(&writer.join("f"), b"x")?;
    fs::create_dir(writer.join("d"))?;
    let reader = cluster.mount_with("ro")?;
    ensure!(fs::read(reader.join("f"))? == b"x");
    for (what, errno) in [
        ("create", files::errno(fs::File::create(reader.join("new")))),
        ("open for writing", files::errno(fs::File::options().append(true).open(reader.join("f")))),
        ("mkdir", files::errno(fs::create_dir(reader.join("e")))),
        ("rmdir", files::errno(fs::remove_dir(reader.join("d")))),
        ("unlink", files::errno(fs::remove_file(reader.join("f")))),
        ("rename", files::errno(fs::rename(reader.join("f"), reader.join("g")))),
        ("symlink", files::errno(symlink("f", reader.join("s")))),
        ("link", files::errno(fs::hard_link(reader.join("f"), reader.join("h")))),
        ("chmod", files::errno(fs::set_permissions(reader.join("f"), fs::Permissions::from_mode(0o600)))),
    ] {
        ensure!(errno == libc::EROFS, "{what}: errno {errno}");
    }
    files::write(&writer.join("later"), b"y")?;
    ensure!(fs::read(reader.join("later"))? == b"y", "a read-only mount sees what others publish");
    cluster.finish([writer, reader])
}
