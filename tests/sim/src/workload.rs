//! What the clients do, through the public interface of dfs-client, and what they check while they do it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dfs_client::{Dfs, Error, NewFile, NewNode, Options, RenameFlags};
use dfs_common::{Attr, ErrorCode, FileKind, InodeId, SetAttr, backoff::Policy};
use dfs_tests::{
    history::{Answer, Call, Object, Operation},
    rng::Rng,
};
use tokio::time::sleep;

use crate::world::{Ns, World};

/// Files that keep their names.
pub(crate) const REGISTERS: u32 = 4;
/// Directories whose names change.
pub(crate) const DIRECTORIES: u32 = 3;
/// Names in each.
const NAMES: u8 = 3;
/// How many operations a client runs at a time.
const WORKERS: u64 = 2;

/// What all clients share and the run looks at afterwards.
#[derive(Default, Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// Clients stop when it is set.
    pub(crate) stop: AtomicBool,
    values: AtomicU64,
}

#[derive(Default, Debug)]
pub(crate) struct Inner {
    pub(crate) operations: Vec<Operation>,
    pub(crate) violations: Vec<String>,
    /// Checksums of contents that somebody began to publish.
    contents: BTreeSet<u64>,
    /// Content of files that never change.
    fixed: BTreeMap<u64, u64>,
    pub(crate) registers: Vec<u64>,
    pub(crate) directories: Vec<u64>,
    /// Where each client makes new files.
    workshops: BTreeMap<String, u64>,
    pub(crate) reads: u64,
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn violation(&self, text: String) {
        self.lock().violations.push(text);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn now() -> Ns {
    World::with(World::now).unwrap_or(0)
}

fn note(line: &str) {
    World::with(|world| world.note(line));
}

/// Identity of a content; an empty one is 0, as a new register is.
fn digest(bytes: &[u8]) -> u64 {
    if bytes.is_empty() {
        return 0;
    }
    bytes.iter().fold(0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }) | 1
}

/// Whether nothing more will happen because of an operation that failed like this: what it found is certain.
fn answer_of(code: ErrorCode) -> Answer {
    match code {
        ErrorCode::NotFound => Answer::Missing,
        ErrorCode::AlreadyExists => Answer::Exists,
        _ => Answer::Unknown,
    }
}

/// A connection with the timings of the simulation.
pub(crate) async fn connect(meta: &[String], name: &str) -> Result<Dfs, Error> {
    let options = Options {
        description: name.to_owned(),
        deadline: Duration::from_secs(8),
        rpc_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        retry: Policy { initial: Duration::from_millis(100), max: Duration::from_secs(1) },
        memory_bytes: 16 << 20,
        ..Options::new(meta.to_vec())
    };
    Dfs::connect(options).await
}

/// Makes what the clients use; nothing fails yet.
pub(crate) async fn prepare(dfs: &Dfs, shared: &Shared, clients: &[String]) -> Result<(), Error> {
    for index in 0..DIRECTORIES {
        let made = dfs.mkdir(InodeId::ROOT, format!("dir{index}").as_bytes(), 0o755, 0, 0).await?;
        shared.lock().directories.push(made.ino.0);
    }
    for client in clients {
        let made = dfs.mkdir(InodeId::ROOT, format!("new-{client}").as_bytes(), 0o755, 0, 0).await?;
        shared.lock().workshops.insert(client.clone(), made.ino.0);
    }
    for index in 0..REGISTERS {
        let name = format!("register{index}");
        let node = NewNode { kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0 };
        let made = dfs.mknod(InodeId::ROOT, name.as_bytes(), node).await?;
        shared.lock().registers.push(made.ino.0);
    }
    Ok(())
}

/// One client process.
pub(crate) async fn client(meta: Vec<String>, name: String, seed: u64, shared: Arc<Shared>) {
    let dfs = loop {
        match connect(&meta, &name).await {
            Ok(dfs) => break dfs,
            Err(_) if shared.stopped() => return,
            Err(_) => sleep(Duration::from_millis(500)).await,
        }
    };
    let mut workers = Vec::new();
    for worker in 0..WORKERS {
        let client = Client {
            dfs: dfs.clone(),
            name: format!("{name}.{worker}"),
            workshop: shared.lock().workshops[&name],
            shared: shared.clone(),
            rng: Rng::new(seed, 100 + worker),
        };
        workers.push(tokio::spawn(client.work()));
    }
    for worker in workers {
        if let Err(error) = worker.await
            && error.is_panic()
        {
            shared.violation(format!("client {name} panicked: {error}"));
        }
    }
    dfs.close().await;
}

struct Client {
    dfs: Dfs,
    name: String,
    workshop: u64,
    shared: Arc<Shared>,
    rng: Rng,
}

impl Client {
    async fn work(mut self) {
        while !self.shared.stopped() {
            let pause = self.rng.range(5, 250);
            sleep(Duration::from_millis(pause)).await;
            match self.rng.below(12) {
                0 | 1 => self.write_register().await,
                2 | 3 => self.read_register().await,
                4 | 5 => self.put().await,
                6 => self.unlink().await,
                7 => self.rename().await,
                8 => self.make().await,
                9 => self.list().await,
                _ => self.look_up().await,
            }
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let id = self.shared.values.fetch_add(1, Ordering::Relaxed);
        let length = match self.rng.below(10) {
            0 => self.rng.range(60_000, 140_000),
            1 | 2 => self.rng.range(2_000, 60_000),
            _ => self.rng.range(20, 2_000),
        };
        let mut bytes = Vec::with_capacity(length as usize + 8);
        let mut fill = Rng::new(id, 77);
        while bytes.len() < length as usize {
            bytes.extend_from_slice(&fill.next().to_le_bytes());
        }
        self.shared.lock().contents.insert(digest(&bytes));
        bytes
    }

    fn record(&self, object: Object, call: Call, called: Ns, answer: Answer) {
        let operation = Operation { object, call, called, returned: now(), answer, client: self.name.clone() };
        note(&operation.to_string());
        self.shared.lock().operations.push(operation);
    }

    /// A change is about to be asked for. It is unknown from now on: should this client die before the answer, it may have
    /// happened all the same. Returns what [`Client::end`] takes.
    fn begin(&self, object: Object, call: Call) -> usize {
        let operation = Operation {
            object,
            call,
            called: now(),
            returned: Ns::MAX,
            answer: Answer::Unknown,
            client: self.name.clone(),
        };
        let operations = &mut self.shared.lock().operations;
        operations.push(operation);
        operations.len() - 1
    }

    /// How the change went.
    fn end(&self, begun: usize, answer: Answer) {
        let operation = &mut self.shared.lock().operations[begun];
        (operation.returned, operation.answer) = (now(), answer);
        note(&operation.to_string());
    }

    fn failed(&self, what: &str, error: &Error) {
        *self.shared.lock().failures.entry(format!("{what}: {:?}", error.code)).or_default() += 1;
        if World::with(World::keeps_lines) == Some(true) {
            note(&format!("{} {what} failed: {} {:?}", self.name, error.message, error.tried));
        }
    }

    fn directory(&mut self) -> (Object, InodeId) {
        let index = self.rng.below(u64::from(DIRECTORIES));
        (Object::Directory(index as u32), InodeId(self.shared.lock().directories[index as usize]))
    }

    fn name(&mut self) -> u8 {
        self.rng.below(u64::from(NAMES)) as u8
    }

    async fn write_register(&mut self) {
        let index = self.rng.below(u64::from(REGISTERS));
        let ino = InodeId(self.shared.lock().registers[index as usize]);
        let bytes = self.value();
        let value = digest(&bytes);
        let writer = match self.dfs.open_writer(ino, true).await {
            Ok(writer) => writer,
            Err(error) => return self.failed("open to write", &error),
        };
        if let Err(error) = writer.write_at(0, &bytes).await {
            return self.failed("write", &error);
        }
        let begun = self.begin(Object::Register(index as u32), Call::Write { value });
        let published = if self.rng.once_in(2) {
            writer.publish(SetAttr::default()).await
        } else {
            writer.publish_and_finish(SetAttr::default()).await
        };
        let answer = match published {
            Ok(_) => Answer::Done,
            Err(error) => {
                self.failed("publish", &error);
                Answer::Unknown
            }
        };
        self.end(begun, answer);
    }

    async fn read_register(&mut self) {
        let index = self.rng.below(u64::from(REGISTERS));
        let ino = InodeId(self.shared.lock().registers[index as usize]);
        let called = now();
        let answer = match self.content(ino).await {
            Ok((value, opened)) => {
                let operation = Operation {
                    object: Object::Register(index as u32),
                    call: Call::Read,
                    called,
                    returned: opened,
                    answer: Answer::Value(value),
                    client: self.name.clone(),
                };
                note(&operation.to_string());
                self.shared.lock().operations.push(operation);
                return;
            }
            Err(error) => error,
        };
        self.failed("read", &answer);
        if answer.code == ErrorCode::NotFound {
            self.shared.violation(format!("{} finds register {index} missing: {answer}", self.name));
        }
    }

    /// Reads a file as it is now, and says when the version was chosen.
    async fn content(&self, ino: InodeId) -> Result<(u64, Ns), Error> {
        let reader = self.dfs.open_reader(ino).await?;
        let opened = now();
        let length = usize::try_from(reader.size()).unwrap_or(usize::MAX);
        let bytes = reader.read_at(0, length).await?.concat();
        let value = digest(&bytes);
        let mut shared = self.shared.lock();
        shared.reads += 1;
        if bytes.len() != length || (value != 0 && !shared.contents.contains(&value)) {
            let name = &self.name;
            shared.violations.push(format!(
                "{name} read {} of {length} bytes of inode {ino} that nobody wrote, at {opened}",
                bytes.len()
            ));
        }
        Ok((value, opened))
    }

    /// A complete file with a new name of its own.
    async fn new_file(&mut self) -> Result<(Vec<u8>, Attr), Error> {
        let name = format!("{}-{:x}", self.name, self.rng.next());
        let bytes = self.value();
        let file = NewFile { mode: 0o644, uid: 0, gid: 0, exclusive: true };
        let created = self.dfs.create(InodeId(self.workshop), name.as_bytes(), file).await?;
        self.shared.lock().fixed.insert(created.attr.ino.0, digest(&bytes));
        let writer = self.dfs.open_new_writer(&created).await?;
        // In pieces, as programs write.
        let middle = self.rng.below(bytes.len() as u64) as usize;
        writer.write_at(0, &bytes[..middle]).await?;
        writer.write_at(middle as u64, &bytes[middle..]).await?;
        let attr = writer.publish_and_finish(SetAttr::default()).await?;
        Ok((name.into_bytes(), attr))
    }

    async fn put(&mut self) {
        let ((object, dir), name) = (self.directory(), self.name());
        let (new, attr) = match self.new_file().await {
            Ok(new) => new,
            Err(error) => return self.failed("new file", &error),
        };
        let begun = self.begin(object, Call::Put { name, ino: attr.ino.0 });
        let renamed = self.dfs.rename(InodeId(self.workshop), &new, dir, &[b'a' + name], RenameFlags::default()).await;
        let answer = match renamed {
            Ok(()) => Answer::Done,
            Err(error) => {
                self.failed("put", &error);
                if error.code == ErrorCode::NotFound {
                    self.shared.violation(format!("{}: a new file is missing: {error}", self.name));
                }
                Answer::Unknown
            }
        };
        self.end(begun, answer);
    }

    async fn unlink(&mut self) {
        let ((object, dir), name) = (self.directory(), self.name());
        let begun = self.begin(object, Call::Unlink { name });
        let answer = match self.dfs.unlink(dir, &[b'a' + name]).await {
            Ok(()) => Answer::Done,
            Err(error) => {
                self.failed("unlink", &error);
                answer_of(error.code)
            }
        };
        self.end(begun, answer);
    }

    async fn rename(&mut self) {
        let ((object, dir), from) = (self.directory(), self.name());
        let to = (from + 1 + self.rng.below(u64::from(NAMES) - 1) as u8) % NAMES;
        let (no_replace, exchange) = [(false, false), (true, false), (false, true)][self.rng.below(3) as usize];
        let begun = self.begin(object, Call::Rename { from, to, no_replace, exchange });
        let flags = RenameFlags { no_replace, exchange };
        let answer = match self.dfs.rename(dir, &[b'a' + from], dir, &[b'a' + to], flags).await {
            Ok(()) => Answer::Done,
            Err(error) => {
                self.failed("rename", &error);
                answer_of(error.code)
            }
        };
        self.end(begun, answer);
    }

    async fn make(&mut self) {
        let ((object, dir), name) = (self.directory(), self.name());
        let node = NewNode { kind: FileKind::File, mode: 0o600, uid: 0, gid: 0, rdev: 0 };
        let begun = self.begin(object, Call::Make { name });
        let answer = match self.dfs.mknod(dir, &[b'a' + name], node).await {
            Ok(attr) => {
                self.shared.lock().fixed.insert(attr.ino.0, 0);
                Answer::Made(attr.ino.0)
            }
            Err(error) => {
                self.failed("make", &error);
                answer_of(error.code)
            }
        };
        self.end(begun, answer);
    }

    async fn list(&mut self) {
        let (object, dir) = self.directory();
        let called = now();
        match self.dfs.readdir(dir, b"", 100, false).await {
            Ok(page) => {
                let names = page.entries.iter().map(|e| (e.name.first().map_or(0, |c| c - b'a'), e.ino.0)).collect();
                self.record(object, Call::List, called, Answer::Names(names));
            }
            Err(error) => self.failed("list", &error),
        }
    }

    async fn look_up(&mut self) {
        let ((object, dir), name) = (self.directory(), self.name());
        let called = now();
        let attr = match self.dfs.lookup(dir, &[b'a' + name]).await {
            Ok(attr) => attr,
            Err(error) => {
                self.failed("look up", &error);
                if error.code == ErrorCode::NotFound {
                    self.record(object, Call::Lookup { name }, called, Answer::Missing);
                }
                return;
            }
        };
        self.record(object, Call::Lookup { name }, called, Answer::Found(attr.ino.0));
        match self.content(attr.ino).await {
            Ok((value, _)) => self.check_fixed(attr.ino, value),
            // Replaced or removed meanwhile.
            Err(error) => self.failed("read found", &error),
        }
    }

    fn check_fixed(&self, ino: InodeId, value: u64) {
        let mut shared = self.shared.lock();
        let wanted = shared.fixed.get(&ino.0).copied();
        if wanted.is_some_and(|wanted| wanted != value) {
            let name = &self.name;
            shared.violations.push(format!("{name} read {value:x} in inode {ino}, which holds {wanted:x?}"));
        }
    }
}

/// Reads everything once more when all is well: every failure counts.
pub(crate) async fn audit(meta: &[String], shared: &Arc<Shared>) -> Result<(), Error> {
    let dfs = connect(meta, "auditor").await?;
    let client =
        Client { dfs: dfs.clone(), name: "auditor".into(), workshop: 0, shared: shared.clone(), rng: Rng::new(0, 0) };
    for index in 0..REGISTERS {
        let ino = InodeId(shared.lock().registers[index as usize]);
        let called = now();
        let (value, _) = client.content(ino).await?;
        client.record(Object::Register(index), Call::Read, called, Answer::Value(value));
    }
    for index in 0..DIRECTORIES {
        let dir = InodeId(shared.lock().directories[index as usize]);
        let called = now();
        let page = dfs.readdir(dir, b"", 100, false).await?;
        let names = page.entries.iter().map(|e| (e.name.first().map_or(0, |c| c - b'a'), e.ino.0)).collect();
        client.record(Object::Directory(index), Call::List, called, Answer::Names(names));
        for entry in page.entries {
            let (value, _) = client.content(entry.ino).await?;
            client.check_fixed(entry.ino, value);
        }
    }
    let workshops: Vec<u64> = shared.lock().workshops.values().copied().collect();
    for dir in workshops {
        for entry in dfs.readdir(InodeId(dir), b"", 4096, false).await?.entries {
            let (value, _) = client.content(entry.ino).await?;
            client.check_fixed(entry.ino, value);
        }
    }
    pinned_versions_stay(&dfs, shared).await?;
    dfs.close().await;
    Ok(())
}

/// A version that is open keeps its bytes although it is replaced, for longer than garbage waits.
async fn pinned_versions_stay(dfs: &Dfs, shared: &Arc<Shared>) -> Result<(), Error> {
    let ino = InodeId(shared.lock().registers[0]);
    let write = async |bytes: &[u8]| {
        let writer = dfs.open_writer(ino, true).await?;
        writer.write_at(0, bytes).await?;
        writer.publish_and_finish(SetAttr::default()).await
    };
    let old = vec![0x5a; 3000];
    write(&old).await?;
    let reader = dfs.open_reader(ino).await?;
    write(b"new").await?;
    sleep(Duration::from_secs(20)).await;
    match reader.read_at(0, old.len()).await {
        Ok(bytes) if bytes.concat() == old => Ok(()),
        Ok(_) => {
            shared.violation("an open version changed its bytes".into());
            Ok(())
        }
        Err(error) => {
            shared.violation(format!("an open version lost its bytes: {error}"));
            Ok(())
        }
    }
}
