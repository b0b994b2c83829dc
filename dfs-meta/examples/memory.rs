//! What a file costs a metadata node: `scripts/meta-memory.sh [FILES]`.
//!
//! It makes files of one chunk through the real state machine, in directories of a thousand, and prints
//! the growth of the process for each file, the rates of commands, and how long a snapshot takes to write and to read back.
//! A process of its own reads the snapshot, so that its figure of memory is that of a node after a start.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::Path,
    process::Command as Process,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dfs_common::{ChunkId, ClusterId, FileId, InodeId, NodeId, SessionId, SetAttr, Uuid, checksum::sha256};
use dfs_meta::fsm::{Batch, Command, CommittedChunk, Op, Reply, Settings, State};

const PER_DIRECTORY: u64 = 1000;
/// Commands that the leader gathers into one entry under load.
const BATCH: usize = 64;
const NODES: u32 = 6;
const SESSION: SessionId = SessionId(1);
const DAY_NS: i64 = 86_400_000_000_000;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("load") => load(Path::new(args.get(1).context("load FILE FILES")?), files(args.get(2))?),
        first => measure(files(first.map(str::to_owned).as_ref())?),
    }
}

fn files(text: Option<&String>) -> Result<u64> {
    let files = text.map_or(Ok(1_000_000), |text| text.parse()).context("usage: memory [FILES]")?;
    ensure!(files >= PER_DIRECTORY, "at least {PER_DIRECTORY} files, or the figure means nothing");
    Ok(files)
}

/// Resident bytes of this process.
fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

/// Seconds that this process has had a processor.
fn on_processor() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let ns: f64 = text.split(' ').next().context("schedstat")?.parse()?;
    Ok(ns / 1e9)
}

/// Applies commands as the leader would: gathered, with a clock that runs.
struct Machine {
    state: State,
    now_ns: i64,
    seq: u64,
    commands: Vec<Command>,
    applied: u64,
}

impl Machine {
    fn new() -> Result<Self> {
        let now_ns = 1_700_000_000_000_000_000;
        let mut machine = Self { state: State::default(), now_ns, seq: 0, commands: Vec::new(), applied: 0 };
        machine.push(Command::InitCluster { cluster_id: ClusterId([1; 16]), settings: Settings::default() })?;
        for n in 1..=NODES {
            machine.push(Command::RegisterNode {
                uuid: Uuid([u8::try_from(n)?; 16]),
                name: format!("storage-{n}"),
                address: format!("10.0.0.{n}:4000"),
                rack: String::new(),
                capacity_bytes: 1 << 44,
                incarnation: 1,
            })?;
        }
        machine.push(Command::OpenSession { client_id: Uuid([9; 16]), description: "measurement".into() })?;
        machine.flush()?;
        Ok(machine)
    }

    fn push(&mut self, command: Command) -> Result<()> {
        self.commands.push(command);
        if self.commands.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn mutate(&mut self, op: Op) -> Result<()> {
        self.seq += 1;
        self.push(Command::Mutate { session: SESSION, seq: self.seq, acked: self.seq.saturating_sub(64), op })
    }

    fn flush(&mut self) -> Result<()> {
        self.now_ns += 3_000_017;
        let commands = std::mem::take(&mut self.commands);
        self.applied += commands.len() as u64;
        for outcome in self.state.apply(&Batch { now_ns: self.now_ns, entropy: 0, commands }) {
            if let Err(refusal) = outcome {
                bail!("{refusal}");
            }
        }
        Ok(())
    }

    fn directory(&mut self, number: u64) -> Result<InodeId> {
        self.flush()?;
        self.seq += 1;
        let name = format!("directory-{number:06}").into_bytes();
        let op = Op::Mkdir { parent: InodeId::ROOT, name, mode: 0o755, uid: 1000, gid: 1000 };
        let command = Command::Mutate { session: SESSION, seq: self.seq, acked: self.seq - 1, op };
        match self.state.apply(&Batch { now_ns: self.now_ns, entropy: 0, commands: vec![command] }).pop() {
            Some(Ok(Reply::Mutated { attr: Some(attr), .. })) => Ok(attr.ino),
            other => bail!("{other:?}"),
        }
    }

    fn file(&mut self, parent: InodeId, number: u64) -> Result<()> {
        let hash = sha256(&number.to_be_bytes());
        let file_id = FileId(std::array::from_fn(|i| hash[i]));
        self.mutate(Op::Create {
            parent,
            name: name(number),
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            exclusive: true,
            file_id,
        })?;
        let first = u32::try_from(number % u64::from(NODES))?;
        let chunk = CommittedChunk {
            chunk: ChunkId::derive(file_id, 0, 0),
            length: 4096,
            sha256: hash,
            replicas: (0..3).map(|i| NodeId((first + i) % NODES + 1)).collect(),
            slots: 1,
        };
        self.mutate(Op::CommitFile { file_id, size: 4096, chunks: vec![chunk], set: SetAttr::default(), done: true })
    }
}

fn name(number: u64) -> Vec<u8> {
    format!("part-{number:09}.bin").into_bytes()
}

fn measure(files: u64) -> Result<()> {
    let before = resident()?;
    let mut machine = Machine::new()?;
    let started = Instant::now();
    let mut parents = Vec::new();
    for number in 0..files {
        if number % PER_DIRECTORY == 0 {
            parents.push(machine.directory(number / PER_DIRECTORY)?);
        }
        let parent = *parents.last().context("made above")?;
        machine.file(parent, number)?;
    }
    machine.flush()?;
    let elapsed = started.elapsed();
    let busy = on_processor()?;
    let grown = resident()? - before;
    println!("{:<44} {:>10}", format!("memory for each of {files} files, bytes"), grown / files);
    rate("commands that make files", machine.applied, elapsed);
    rate("  of time on a processor", machine.applied, Duration::from_secs_f64(busy));

    let path = std::env::temp_dir().join(format!("dfs-meta-memory-{}", std::process::id()));
    let result = snapshot(&machine.state, &path, files);
    std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    result?;

    let some = (files / 10).min(100_000);
    let started = Instant::now();
    remove(&mut machine, &parents, 0..some)?;
    rate("removals without trash", some, started.elapsed());
    machine.push(Command::SetTrashRetention { retention_ns: DAY_NS })?;
    let before = resident()?;
    let started = Instant::now();
    remove(&mut machine, &parents, some..2 * some)?;
    rate("removals into the trash", some, started.elapsed());
    let grown = resident()?.saturating_sub(before);
    println!("{:<44} {:>10}", "memory for each entry of the trash, bytes", grown / some);
    Ok(())
}

fn remove(machine: &mut Machine, parents: &[InodeId], numbers: std::ops::Range<u64>) -> Result<()> {
    for number in numbers {
        let parent = parents[usize::try_from(number / PER_DIRECTORY)?];
        machine.mutate(Op::Unlink { parent, name: name(number) })?;
    }
    machine.flush()
}

fn rate(what: &str, count: u64, elapsed: Duration) {
    println!("{:<44} {:>10.0}", format!("{what}, per second"), count as f64 / elapsed.as_secs_f64());
}

fn snapshot(state: &State, path: &Path, files: u64) -> Result<()> {
    let started = Instant::now();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    state.write_snapshot(&mut file)?;
    file.flush()?;
    println!("{:<44} {:>10.2}", "snapshot written in, s", started.elapsed().as_secs_f64());
    println!("{:<44} {:>10}", "snapshot for each file, bytes", std::fs::metadata(path)?.len() / files);
    let mut child = Process::new(std::env::current_exe()?);
    let status = child.arg("load").arg(path).arg(files.to_string()).status()?;
    ensure!(status.success(), "reading the snapshot: {status}");
    Ok(())
}

fn load(path: &Path, files: u64) -> Result<()> {
    let before = resident()?;
    let started = Instant::now();
    let state = State::read_snapshot(&mut BufReader::with_capacity(1 << 20, File::open(path)?))?;
    println!("{:<44} {:>10.2}", "snapshot read in, s", started.elapsed().as_secs_f64());
    println!("{:<44} {:>10.2}", "  of these on a processor, s", on_processor()?);
    let grown = resident()? - before;
    println!("{:<44} {:>10}", "memory for each file after a start, bytes", grown / files);
    ensure!(state.counters().chunks == files, "{:?}", state.counters());
    Ok(())
}
