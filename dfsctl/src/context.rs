//! What every verb works with: options, a runtime, and a connection that is closed also when the user interrupts.

use std::{
    ffi::{CStr, OsStr},
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    time::Duration,
};

use dfs_client::Dfs;
use dfs_common::ErrorCode;
use tokio::runtime::Runtime;

use crate::{cli::Global, failure::Failure, output::Output};

/// Longest time the farewell may take: the session ends by its lease anyway.
const CLOSE: Duration = Duration::from_secs(2);

/// Options and runtime of one command.
pub(crate) struct Context {
    /// Options of every verb.
    pub(crate) global: Global,
    /// How to print.
    pub(crate) out: Output,
    /// There until the end.
    runtime: Option<Runtime>,
}

impl Context {
    /// # Errors
    /// No threads.
    pub(crate) fn new(global: Global) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::io("cannot start the runtime", &error))?;
        let out = Output { json: global.json, quiet: global.quiet };
        Ok(Self { global, out, runtime: Some(runtime) })
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is taken only when the context is dropped")
    }

    /// Runs `work` to its end.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime().block_on(work)
    }

    /// Runs `work` with a connection to the cluster. Ctrl-C and SIGTERM end the session, so that names which an unfinished
    /// upload reserved are free at once.
    ///
    /// # Errors
    /// No address was given; the failure of `work`; interrupted.
    pub(crate) fn with_dfs<T>(&self, work: impl AsyncFnOnce(&Dfs) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.global.client.meta.is_empty() {
            return Err(Failure::usage("no metadata node is named").hint(
                "give --meta HOST:PORT,... or set DFS_META_ADDRS; for a cluster made by `dfsctl dev up`: . .dfs/env",
            ));
        }
        let options = self.global.client.options(format!("dfsctl on {}, pid {}", host_name(), std::process::id()));
        self.runtime().block_on(async {
            let dfs = Dfs::connect_admin(options).await?;
            let result = tokio::select! {
                result = work(&dfs) => result,
                failure = interrupted() => Err(failure),
            };
            // The outcome is decided; a farewell that does not get through changes nothing.
            drop(tokio::time::timeout(CLOSE, dfs.close()).await);
            result
        })
    }
}

impl Drop for Context {
    /// Work that still waits for a dead cluster or a slow disk must not keep the process.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn interrupted() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
    Failure::local("interrupted")
}

impl From<dfs_client::Error> for Failure {
    fn from(error: dfs_client::Error) -> Self {
        let is_local = error.is_local;
        let mut failure = Self::of(error.code, error);
        if is_local {
            // Hints name verbs for what is in the cluster; a file of this machine is named by the message.
            failure.hint = None;
        }
        failure
    }
}

/// Puts a failure into the user's words: what was done with which path. The library speaks of inodes.
pub(crate) trait On<T> {
    /// `action` reads like `cannot remove`; `path` is from the root, without a leading slash.
    ///
    /// # Errors
    /// The same failure with a better message.
    fn on(self, action: &str, path: &[u8]) -> Result<T, Failure>;
}

impl<T> On<T> for Result<T, dfs_client::Error> {
    fn on(self, action: &str, path: &[u8]) -> Result<T, Failure> {
        self.map_err(|error| {
            let why = match error.code {
                ErrorCode::NotFound
                | ErrorCode::AlreadyExists
                | ErrorCode::NotDirectory
                | ErrorCode::IsDirectory
                | ErrorCode::NotEmpty => error.code.to_string(),
                _ => error.to_string(),
            };
            Failure::of(error.code, format!("{action} /{}: {why}", crate::text::escape(path)))
        })
    }
}

/// The name of this machine.
fn host_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the kernel writes at most the length given; the last byte stays 0.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    let name = CStr::from_bytes_until_nul(&buffer).ok().filter(|_| result == 0);
    name.map_or_else(|| "unknown host".into(), |name| name.to_string_lossy().into_owned())
}

/// Owner of what this process makes.
pub(crate) fn owner() -> (u32, u32) {
    // SAFETY: these calls cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Permission bits of a new file or directory under the process's umask.
pub(crate) fn masked(mode: u32) -> u32 {
    // The umask cannot be read without setting it; the process has no other thread that makes files now.
    // SAFETY: these calls cannot fail.
    let mask = unsafe {
        let mask = libc::umask(0o022);
        libc::umask(mask);
        mask
    };
    mode & !mask
}

/// The bytes of a path in the cluster, checked.
///
/// # Errors
/// A component is too long, or is `..`.
pub(crate) fn cluster_path(path: &OsStr) -> Result<Vec<u8>, Failure> {
    let bytes = path.as_bytes();
    let shown = crate::text::escape(bytes);
    let parts = dfs_common::name::split(bytes).map_err(|code| {
        let has = |name: &[u8]| bytes.split(|b| *b == b'/').any(|part| part == name);
        let why = match code {
            ErrorCode::InvalidArgument if has(b"..") => {
                "`..` is not resolved here: give the path from the root without it".to_owned()
            }
            ErrorCode::NameTooLong => format!("a name in it is longer than {} bytes", dfs_common::name::NAME_MAX),
            _ => code.to_string(),
        };
        Failure::of(code, format!("path {shown}: {why}"))
    })?;
    Ok(parts.join(&b'/'))
}

/// Directory and name of a path in the cluster.
///
/// # Errors
/// As [`cluster_path`]; the path is the root.
pub(crate) fn parent_and_name(path: &OsStr) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let bytes = cluster_path(path)?;
    match bytes.iter().rposition(|b| *b == b'/') {
        _ if bytes.is_empty() => Err(Failure::usage("the root directory cannot be made, removed or renamed")),
        Some(slash) => Ok((bytes[..slash].to_vec(), bytes[slash + 1..].to_vec())),
        None => Ok((vec![], bytes)),
    }
}

/// Starts logging to standard error.
///
/// # Errors
/// The filter is malformed.
pub(crate) fn start_log(global: &Global) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&global.log)
        .map_err(|error| Failure::usage(format!("--log {:?}: {error}", global.log)))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    // A second subscriber in one process happens only in tests.
    drop(match global.log_format {
        crate::cli::LogFormat::Text => builder.try_init(),
        crate::cli::LogFormat::Json => builder.json().try_init(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn failures_name_the_path_and_keep_their_code() {
        let failed = |code| Err::<(), _>(dfs_client::Error::new(code, "looking up \"x\" in inode 7"));
        let failure = failed(ErrorCode::NotFound).on("cannot remove", b"a/x\n").expect_err("failed");
        assert_eq!(failure.message, "cannot remove /a/x\\n: not found");
        assert_eq!(failure.exit, Exit::NotFound);
        let failure = failed(ErrorCode::TimedOut).on("cannot remove", b"a").expect_err("failed");
        assert_eq!(failure.message, "cannot remove /a: looking up \"x\" in inode 7");
    }

    #[test]
    fn paths_are_cut_at_the_last_slash() {
        let cut = |path: &str| parent_and_name(OsStr::new(path));
        assert_eq!(cut("/a"), Ok((vec![], b"a".to_vec())));
        assert_eq!(cut("a//b/c/"), Ok((b"a/b".to_vec(), b"c".to_vec())));
        assert_eq!(cut("/").expect_err("root").exit, Exit::Usage);
        let dots = cut("/a/../b").expect_err("dots");
        assert_eq!(dots.exit, Exit::Usage);
        assert!(dots.message.contains("`..` is not resolved"), "{dots}");
        assert!(cut(&"x".repeat(256)).expect_err("long").message.contains("longer than 255 bytes"));
    }

    #[test]
    fn what_is_wrong_on_this_machine_gives_no_advice_about_the_cluster() {
        let error = dfs_client::Error::new(ErrorCode::IsDirectory, "/x is a directory");
        assert!(Failure::from(error.clone()).hint.is_some_and(|hint| hint.contains("dfsctl rm -r")));
        assert_eq!(Failure::from(dfs_client::Error { is_local: true, ..error }).hint, None);
    }
}
