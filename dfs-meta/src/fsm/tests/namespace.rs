//! Names, directories, links, renames, attributes.

use dfs_common::{ErrorCode, FileKind, InodeId, SetAttr, SetTime};

use super::{super::Op, lab::*};

#[test]
fn names_are_checked() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let long = "x".repeat(256);
    for (name, code) in [
        ("", ErrorCode::InvalidArgument),
        (".", ErrorCode::InvalidArgument),
        ("..", ErrorCode::InvalidArgument),
        ("a/b", ErrorCode::InvalidArgument),
        ("a\0", ErrorCode::InvalidArgument),
        (&long, ErrorCode::NameTooLong),
    ] {
        assert_eq!(lab.code(s, mkdir(ROOT, name)), code, "{name:?}");
        assert_eq!(lab.code(s, create(ROOT, name, file_id(1))), code, "{name:?}");
        assert_eq!(lab.code(s, rename((ROOT, "a"), (ROOT, name))), code, "{name:?}");
    }
    lab.mkdir(s, ROOT, &"x".repeat(255));
}

#[test]
fn directories_count_their_subdirectories() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let a = lab.mkdir(s, ROOT, "a");
    let b = lab.mkdir(s, a, "b");
    lab.publish(s, a, "f", &[1]);
    assert_eq!(lab.look(s, ROOT, "a").map(|attr| attr.nlink), Ok(3));
    lab.ok(s, rename((a, "b"), (ROOT, "b")));
    assert_eq!(lab.state.getattr(None, a).map(|attr| attr.nlink), Ok(2));
    assert_eq!(lab.state.getattr(None, ROOT).map(|attr| attr.nlink), Ok(4));
    assert_eq!(lab.state.lookup(None, b, b"..").map(|attr| attr.ino), Ok(ROOT));
    assert_eq!(lab.state.lookup(None, ROOT, b"..").map(|attr| attr.ino), Ok(ROOT));
    assert_eq!(lab.state.lookup(None, b, b".").map(|attr| attr.ino), Ok(b));
}

#[test]
fn rmdir_wants_an_empty_directory() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let a = lab.mkdir(s, ROOT, "a");
    lab.publish(s, a, "f", &[]);
    assert_eq!(lab.code(s, rmdir(ROOT, "a")), ErrorCode::NotEmpty);
    assert_eq!(lab.code(s, rmdir(a, "f")), ErrorCode::NotDirectory);
    assert_eq!(lab.code(s, unlink(ROOT, "a")), ErrorCode::IsDirectory);
    assert_eq!(lab.code(s, rmdir(ROOT, "none")), ErrorCode::NotFound);
    lab.ok(s, unlink(a, "f"));
    lab.ok(s, rmdir(ROOT, "a"));
    assert_eq!(lab.look(s, ROOT, "a"), Err(ErrorCode::NotFound));
    assert_eq!(lab.code(s, mkdir(a, "x")), ErrorCode::NotFound);
}

#[test]
fn a_directory_in_which_somebody_writes_a_new_file_is_not_empty() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let dir = lab.mkdir(a, ROOT, "dir");
    lab.mkdir(b, ROOT, "other");
    let (_, id) = lab.create(a, dir, "new");
    assert_eq!(lab.code(a, rmdir(ROOT, "dir")), ErrorCode::NotEmpty);
    assert_eq!(lab.code(b, rmdir(ROOT, "dir")), ErrorCode::NotEmpty);
    assert_eq!(lab.code(b, rename((ROOT, "other"), (ROOT, "dir"))), ErrorCode::NotEmpty);
    lab.ok(a, Op::AbortFile { file_id: id });
    lab.ok(b, rmdir(ROOT, "dir"));
}

#[test]
fn something_that_is_no_directory_has_no_entries() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "f", &[1]).ino;
    assert_eq!(lab.code(s, mkdir(file, "x")), ErrorCode::NotDirectory);
    assert_eq!(lab.look(s, file, "x"), Err(ErrorCode::NotDirectory));
    assert_eq!(lab.code(s, mkdir(InodeId(99), "x")), ErrorCode::NotFound);
}

#[test]
fn entries_are_listed_in_byte_order_and_pages() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    for name in ["b", "a", "ab", "c", "aa"] {
        lab.mkdir(s, ROOT, name);
    }
    lab.create(s, ROOT, "ac");
    let mut after = Vec::new();
    let mut seen = Vec::new();
    loop {
        let page = lab.state.readdir(Some(s), ROOT, &after, 2).expect("a directory");
        seen.extend(page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
        if page.end {
            break;
        }
        after = page.entries.last().expect("a page that is not the last has entries").name.clone();
    }
    assert_eq!(seen, ["a", "aa", "ab", "ac", "b", "c"]);
    let other = lab.session(2);
    assert_eq!(lab.names(other, ROOT), ["a", "aa", "ab", "b", "c"]);
}

#[test]
fn a_rename_replaces_a_file_and_its_content_becomes_garbage() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let new = lab.publish(s, ROOT, "new", &[1]);
    let old = lab.publish(s, ROOT, "old", &[2]);
    lab.ok(s, rename((ROOT, "new"), (ROOT, "old")));
    assert_eq!(lab.names(s, ROOT), ["old"]);
    assert_eq!(lab.look(s, ROOT, "old").map(|attr| attr.ino), Ok(new.ino));
    assert_eq!(lab.state.garbage().map(|(_, id)| Some(id)).collect::<Vec<_>>(), [old.file_id]);
}

#[test]
fn a_rename_minds_kinds_and_emptiness() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (a, b) = (lab.mkdir(s, ROOT, "a"), lab.mkdir(s, ROOT, "b"));
    lab.publish(s, ROOT, "f", &[1]);
    lab.publish(s, b, "x", &[2]);
    assert_eq!(lab.code(s, rename((ROOT, "a"), (ROOT, "f"))), ErrorCode::NotDirectory);
    assert_eq!(lab.code(s, rename((ROOT, "f"), (ROOT, "a"))), ErrorCode::IsDirectory);
    assert_eq!(lab.code(s, rename((ROOT, "a"), (ROOT, "b"))), ErrorCode::NotEmpty);
    lab.ok(s, rename((ROOT, "b"), (ROOT, "a")));
    assert_eq!(lab.look(s, ROOT, "a").map(|attr| attr.ino), Ok(b));
    assert_eq!(lab.state.getattr(None, a), Err(ErrorCode::NotFound));
    assert_eq!(lab.state.getattr(None, ROOT).map(|attr| attr.nlink), Ok(3));
}

#[test]
fn a_rename_cannot_tie_a_ring() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let a = lab.mkdir(s, ROOT, "a");
    let b = lab.mkdir(s, a, "b");
    let c = lab.mkdir(s, b, "c");
    lab.mkdir(s, ROOT, "d");
    assert_eq!(lab.code(s, rename((ROOT, "a"), (a, "x"))), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(s, rename((ROOT, "a"), (c, "x"))), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(s, rename_with((ROOT, "d"), (c, "x"), false, true)), ErrorCode::NotFound);
    lab.mkdir(s, c, "x");
    assert_eq!(lab.code(s, rename_with((ROOT, "a"), (c, "x"), false, true)), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(s, rename_with((c, "x"), (ROOT, "a"), false, true)), ErrorCode::InvalidArgument);
    lab.ok(s, rename_with((c, "x"), (ROOT, "d"), false, true));
}

#[test]
fn a_rename_onto_itself_or_its_other_name_changes_nothing() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "a", &[1]).ino;
    lab.ok(s, link(file, ROOT, "b"));
    lab.ok(s, rename((ROOT, "a"), (ROOT, "a")));
    lab.ok(s, rename((ROOT, "a"), (ROOT, "b")));
    assert_eq!(lab.names(s, ROOT), ["a", "b"]);
    assert_eq!(lab.code(s, rename_with((ROOT, "a"), (ROOT, "a"), true, false)), ErrorCode::AlreadyExists);
}

#[test]
fn rename_flags_are_kept() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let d = lab.mkdir(s, ROOT, "d");
    let f = lab.publish(s, d, "f", &[1]).ino;
    assert_eq!(lab.code(s, rename_with((d, "f"), (ROOT, "d"), true, false)), ErrorCode::AlreadyExists);
    assert_eq!(lab.code(s, rename_with((d, "f"), (ROOT, "d"), true, true)), ErrorCode::InvalidArgument);
    let e = lab.mkdir(s, ROOT, "e");
    lab.ok(s, rename_with((d, "f"), (ROOT, "e"), false, true));
    assert_eq!(lab.look(s, d, "f").map(|attr| attr.ino), Ok(e));
    assert_eq!(lab.look(s, ROOT, "e").map(|attr| attr.ino), Ok(f));
    assert_eq!(lab.state.getattr(None, ROOT).map(|attr| attr.nlink), Ok(3));
    assert_eq!(lab.state.getattr(None, d).map(|attr| attr.nlink), Ok(3));
}

#[test]
fn links_share_an_inode_until_the_last_name_goes() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "a", &[1]).ino;
    let d = lab.mkdir(s, ROOT, "d");
    assert_eq!(lab.attr(s, link(file, d, "b")).nlink, 2);
    assert_eq!(lab.code(s, link(d, ROOT, "x")), ErrorCode::NotPermitted);
    assert_eq!(lab.code(s, link(file, ROOT, "d")), ErrorCode::AlreadyExists);
    assert_eq!(lab.attr(s, unlink(ROOT, "a")).nlink, 1);
    assert_eq!(lab.content(file), [1]);
    assert_eq!(lab.attr(s, unlink(d, "b")).nlink, 0);
    assert_eq!(lab.state.getattr(None, file), Err(ErrorCode::NotFound));
}

#[test]
fn the_setgid_bit_of_a_directory_is_inherited() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let d = lab.mkdir(s, ROOT, "d");
    let set = SetAttr { mode: Some(0o2775), gid: Some(77), ..SetAttr::default() };
    lab.ok(s, Op::SetAttr { ino: d, set });
    let sub = lab.attr(s, mkdir(d, "sub"));
    assert_eq!((sub.mode, sub.gid), (0o2755, 77));
    let (file, _) = lab.create(s, d, "f");
    assert_eq!((file.mode, file.gid), (0o644, 77));
}

#[test]
fn times_move_with_changes() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let d = lab.mkdir(s, ROOT, "d");
    let made = lab.state.getattr(None, d).expect("made");
    assert_eq!((made.atime_ns, made.mtime_ns, made.ctime_ns), (lab.now_ns, lab.now_ns, lab.now_ns));
    lab.mkdir(s, d, "x");
    assert_eq!(lab.state.getattr(None, d).map(|attr| attr.mtime_ns), Ok(lab.now_ns));
    let set = SetAttr { atime: Some(SetTime::At(-5)), mtime: Some(SetTime::Now), ..SetAttr::default() };
    let attr = lab.attr(s, Op::SetAttr { ino: d, set });
    assert_eq!((attr.atime_ns, attr.mtime_ns, attr.ctime_ns), (-5, lab.now_ns, lab.now_ns));
    assert!(attr.generation > made.generation);
}

#[test]
fn special_files_and_symlinks() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let mknod = |name: &str, kind, id| Op::Mknod {
        parent: ROOT,
        name: name.as_bytes().to_vec(),
        kind,
        mode: 0o600,
        uid: 0,
        gid: 0,
        rdev: 7,
        file_id: id,
    };
    let device = lab.attr(s, mknod("dev", FileKind::CharDevice, file_id(0)));
    assert_eq!((device.kind, device.rdev), (FileKind::CharDevice, 7));
    assert_eq!(lab.attr(s, mknod("fifo", FileKind::Fifo, file_id(0))).rdev, 0);
    let file = lab.attr(s, mknod("file", FileKind::File, file_id(50)));
    assert_eq!((file.size, file.file_id), (0, Some(file_id(50))));
    assert_eq!(lab.code(s, mknod("d", FileKind::Directory, file_id(51))), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(s, mknod("dev", FileKind::Fifo, file_id(51))), ErrorCode::AlreadyExists);
    let symlink =
        |target: &[u8]| Op::Symlink { parent: ROOT, name: b"link".to_vec(), target: target.to_vec(), uid: 0, gid: 0 };
    assert_eq!(lab.code(s, symlink(b"")), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(s, symlink(&[b'x'; 4096])), ErrorCode::NameTooLong);
    let link = lab.attr(s, symlink(b"../else\xff"));
    assert_eq!((link.kind, link.size, link.mode), (FileKind::Symlink, 8, 0o777));
    assert_eq!(lab.state.readlink(link.ino), Ok(b"../else\xff".to_vec()));
    assert_eq!(lab.state.readlink(device.ino), Err(ErrorCode::InvalidArgument));
    lab.ok(s, unlink(ROOT, "dev"));
    assert_eq!(lab.state.getattr(None, device.ino), Err(ErrorCode::NotFound));
}

#[test]
fn extended_attributes_keep_their_rules() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let set = |name: &[u8], size: usize, create, replace| Op::SetXattr {
        ino: ROOT,
        name: name.to_vec(),
        value: vec![7; size],
        create,
        replace,
    };
    assert_eq!(lab.code(s, set(b"user.a", 1, false, true)), ErrorCode::NoAttribute);
    lab.ok(s, set(b"user.a", 1, true, false));
    assert_eq!(lab.code(s, set(b"user.a", 1, true, false)), ErrorCode::AlreadyExists);
    lab.ok(s, set(b"user.a", 2, false, true));
    lab.ok(s, set(b"user.b", 64 << 10, false, false));
    assert_eq!(lab.code(s, set(b"user.c", (64 << 10) + 1, false, false)), ErrorCode::TooLarge);
    assert_eq!(lab.code(s, set(&[b'x'; 256], 1, false, false)), ErrorCode::NameTooLong);
    assert_eq!(lab.code(s, set(b"", 1, false, false)), ErrorCode::InvalidArgument);
    for name in [b"user.c", b"user.d", b"user.e"] {
        lab.run(s, set(name, 64 << 10, false, false)).ok();
    }
    assert_eq!(lab.code(s, set(b"user.f", 64 << 10, false, false)), ErrorCode::NoSpace);
    assert_eq!(lab.state.getxattr(ROOT, b"user.a"), Ok(vec![7; 2]));
    lab.ok(s, Op::RemoveXattr { ino: ROOT, name: b"user.a".to_vec() });
    assert_eq!(lab.code(s, Op::RemoveXattr { ino: ROOT, name: b"user.a".to_vec() }), ErrorCode::NoAttribute);
    assert_eq!(lab.state.getxattr(ROOT, b"user.a"), Err(ErrorCode::NoAttribute));
    assert_eq!(lab.state.listxattr(ROOT).map(|names| names[0].clone()), Ok(b"user.b".to_vec()));
}
