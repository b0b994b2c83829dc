//! Throughput against a running cluster.
use std::time::Instant;
use dfs_client::{Dfs, NewFile, Options};
use dfs_common::InodeId;

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let rest: Vec<&str> = stat.rsplit_once(')').expect("comm").1.split_whitespace().collect();
    (rest[11].parse::<f64>().expect("n") + rest[12].parse::<f64>().expect("n")) / 100.0
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let meta = std::env::var("DFS_META_ADDRS").expect("env").split(',').map(str::to_owned).collect();
    let dfs = Dfs::connect(Options::new(meta)).await.expect("connects");
    let run: u64 = Instant::now().elapsed().as_nanos() as u64 + std::process::id() as u64;
    let mib: usize = std::env::var("MIB").map_or(1024, |m| m.parse().expect("n"));
    let piece: Vec<u8> = (0..1 << 20).map(|i: usize| (i * 31 % 251) as u8).collect();
    for round in 0..2 {
        let (t, c) = (Instant::now(), cpu());
        let created = dfs.create(InodeId::ROOT, format!("big{run}-{round}").as_bytes(), NewFile::default()).await.expect("create");
        let writer = dfs.open_new_writer(&created).await.expect("open");
        for i in 0..mib { writer.write_at((i as u64) << 20, &piece).await.expect("write"); }
        writer.publish_and_finish(None).await.expect("publish");
        let s = t.elapsed().as_secs_f64();
        println!("write {mib} MiB: {s:.2} s {:.2} GB/s client cpu {:.2} s/GB", mib as f64 / 953.67 / s, (cpu() - c) / (mib as f64 / 953.67));
        for step in [128 << 10, 1 << 20] {
            let (t, c) = (Instant::now(), cpu());
            let reader = dfs.open_reader(created.attr.ino).await.expect("open");
            let mut at = 0;
            while at < reader.size() {
                let got = reader.read_at(at, step).await.expect("read");
                at += got.iter().map(|b| b.len() as u64).sum::<u64>();
            }
            let s = t.elapsed().as_secs_f64();
            println!("read by {step}: {s:.2} s {:.2} GB/s client cpu {:.2} s/GB", mib as f64 / 953.67 / s, (cpu() - c) / (mib as f64 / 953.67));
        }
        println!("memory {:?}", dfs.memory_usage());
    }
    let t = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for w in 0..8 {
        let dfs = dfs.clone();
        tasks.spawn(async move {
            for i in 0..250 {
                let created = dfs.create(InodeId::ROOT, format!("s{run}-{w}-{i}").as_bytes(), NewFile::default()).await.expect("create");
                let writer = dfs.open_new_writer(&created).await.expect("open");
                writer.write_at(0, &[7; 4096]).await.expect("write");
                writer.publish_and_finish(None).await.expect("publish");
            }
        });
    }
    while let Some(r) = tasks.join_next().await { r.expect("ok"); }
    println!("2000 files of 4 KiB, 8 writers: {:.0}/s", 2000.0 / t.elapsed().as_secs_f64());
    let t = Instant::now();
    for i in 0..250 {
        let attr = dfs.resolve(format!("s{run}-0-{i}").as_bytes()).await.expect("found");
        let reader = dfs.open_reader(attr.ino).await.expect("open");
        assert_eq!(reader.read_at(0, 65536).await.expect("read").concat().len(), 4096);
    }
    println!("250 files lookup+open+read: {:.0}/s", 250.0 / t.elapsed().as_secs_f64());
    dfs.close().await;
}
