//! The line between a supervisor and the process that serves: messages as JSON, with descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest message, bytes: that of a handover has a few hundred.
const MESSAGE_MAX: usize = 16 << 10;
/// Most descriptors with one message.
const DESCRIPTORS_MAX: usize = 8;

/// How what is handed over is written: these facts, and the records of the ledger.
pub(crate) const FORMAT: u32 = 1;

/// What a mount is, so that another process can serve it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// [`FORMAT`] of the program that mounted.
    pub(crate) format: u32,
    /// What the kernel said first, FUSE_INIT, and what it was answered.
    pub(crate) init: Vec<u8>,
    pub(crate) answer: Vec<u8>,
    /// The inode that is the root of the mount.
    pub(crate) root: u64,
    /// Number of the mount's device.
    pub(crate) device: u64,
    /// Processes so far that served it.
    pub(crate) lives: u64,
    /// Whether the last one ended in good order: nothing was under way and nothing unpublished.
    pub(crate) is_orderly: bool,
    /// Why the program that was to take over last did not, if the one before it had to go on.
    #[serde(default)]
    pub(crate) refusal: Option<String>,
}

/// A mount with its descriptors.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) facts: Facts,
    /// The kernel's end, once for each thread that reads requests.
    pub(crate) devices: Vec<OwnedFd>,
    pub(crate) ledger: OwnedFd,
}

impl Handover {
    pub(crate) fn from_parts(facts: Facts, mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        match (descriptors.pop(), descriptors.is_empty()) {
            (Some(ledger), false) => Ok(Self { facts, devices: descriptors, ledger }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a handover without its descriptors")),
        }
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.devices.iter().chain([&self.ledger]).map(|descriptor| descriptor.as_fd()).collect()
    }
}

/// What the supervisor tells the process that it has started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Mount, and serve.
    Mount,
    /// Serve the mount whose descriptors come with this.
    TakeOver(Facts),
}

/// What the serving process tells its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// It is mounted; what another process needs to take it over.
    Mounted(Facts),
    /// The mount answers.
    Ready,
    /// It came to nothing, and why.
    Failed(String),
    /// The mount is over.
    Ended,
    /// This process ends in good order, and another one is to take over: the program of this path.
    Next(std::path::PathBuf),
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = packets()?;
        Ok((Self(ours), Self(theirs)))
    }

    /// The end that this process was started with.
    pub(crate) fn inherited(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Whoever receives gets what was sent before, and then the end.
    pub(crate) fn hang_up(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, rustix::net::Shutdown::Read)?)
    }

    /// Sends a message.
    pub(crate) fn send<M: Serialize>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MESSAGE_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message between the processes is too long"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message with its descriptors; `None` when the other process has ended.
    pub(crate) fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut text = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            rustix::io::retry_on_intr(|| recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut control, flags))?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptors = rights.flatten().collect();
        Ok(Some((serde_json::from_slice(&text[..received.bytes])?, descriptors)))
    }
}

/// Two ends of a line that keeps messages apart.
pub(super) fn packets() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
    };

    use super::*;

    fn facts() -> Facts {
        let (init, answer) = (vec![1, 2, 3], vec![255; 80]);
        Facts { format: FORMAT, init, answer, root: 1, device: 77, lives: 3, is_orderly: false, refusal: None }
    }

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (ours, theirs) = Channel::pair().expect("sockets");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"kept").expect("room");
        ours.send(&Order::TakeOver(facts()), &[file.as_fd(), file.as_fd()]).expect("sent");
        ours.send(&Order::Mount, &[]).expect("sent");
        let (order, descriptors) = theirs.receive::<Order>().expect("received").expect("a message");
        let Order::TakeOver(told) = order else { panic!("{order:?}") };
        let handover = Handover::from_parts(told, descriptors).expect("whole");
        assert_eq!((handover.facts, handover.devices.len()), (facts(), 1));
        let (mut copy, mut text) = (File::from(handover.ledger), String::new());
        copy.rewind().expect("a file");
        copy.read_to_string(&mut text).expect("a file");
        assert_eq!(text, "kept");
        let (order, descriptors) = theirs.receive::<Order>().expect("received").expect("a message");
        assert!(matches!(order, Order::Mount) && descriptors.is_empty());
        theirs.send(&Word::Ready, &[]).expect("sent");
        ours.hang_up().expect("a socket");
        assert!(matches!(ours.receive::<Word>().expect("received"), Some((Word::Ready, _))), "what was sent before");
        assert!(ours.receive::<Word>().expect("an end").is_none());
        drop(ours);
        assert!(theirs.receive::<Order>().expect("an end").is_none());
        assert!(theirs.send(&Word::Ready, &[]).is_err(), "nobody is there");
    }

    #[test]
    fn a_handover_without_its_descriptors_is_refused() {
        let (one, _other) = packets().expect("sockets");
        assert!(Handover::from_parts(facts(), vec![]).is_err());
        assert!(Handover::from_parts(facts(), vec![one]).is_err());
    }
}
