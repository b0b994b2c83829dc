//! The network between the machines: connections that carry bytes in order, late, and not at all while a way is cut.
//!
//! A cut holds bytes back, as TCP does by sending them again: when the cut ends they arrive, perhaps long after their sender
//! gave up and repeated the request elsewhere. So requests arrive late, twice, and in another order than they were sent. A
//! broken connection loses what was on its way, an answer after the effect of its request among it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, Bytes, BytesMut};
use dfs_proto::machine::{Connecting, Link, Links};
use dfs_tests::rng::Rng;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::world::{MS, NodeIndex, Ns, World};

/// Bytes on their way in one direction.
const WINDOW_BYTES: usize = 1 << 20;
/// How often a connection is tried again while its way is cut, and how often in all.
const CONNECT_AGAIN: std::time::Duration = std::time::Duration::from_millis(500);
const CONNECT_TRIES: u32 = 20;

#[derive(Debug)]
enum Segment {
    Bytes(BytesMut),
    End,
}

/// One end of a connection.
#[derive(Debug, Default)]
struct End {
    node: NodeIndex,
    /// Sent by the other end, on its way here: when it arrives, when it was sent.
    coming: VecDeque<(Ns, Ns, Segment)>,
    coming_bytes: usize,
    arrived: VecDeque<Bytes>,
    ended: bool,
    broken: bool,
    /// Nobody holds this end any more.
    gone: bool,
    /// The machine lost power: it takes nothing and says nothing.
    silent: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

type Acceptor = mpsc::UnboundedSender<io::Result<Box<dyn Link>>>;

/// All connections.
#[derive(Debug)]
pub(crate) struct Net {
    rng: Rng,
    next: u64,
    links: BTreeMap<u64, [End; 2]>,
    listeners: BTreeMap<SocketAddr, (NodeIndex, Acceptor)>,
    hosts: BTreeMap<IpAddr, NodeIndex>,
    /// Ways that carry nothing, from and to.
    cut: BTreeSet<(NodeIndex, NodeIndex)>,
    /// Machines without power: their peers hear nothing of them.
    off: BTreeSet<NodeIndex>,
    /// Typical delay of slow ways.
    slow: BTreeMap<(NodeIndex, NodeIndex), Ns>,
    pub(crate) typical_ns: Ns,
}

impl Net {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            next: 0,
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            off: BTreeSet::new(),
            slow: BTreeMap::new(),
            typical_ns: MS / 2,
        }
    }

    pub(crate) fn add_host(&mut self, address: IpAddr, node: NodeIndex) {
        self.hosts.insert(address, node);
    }

    fn is_cut(&self, from: NodeIndex, to: NodeIndex) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Cuts the way from one machine to another.
    pub(crate) fn cut(&mut self, from: NodeIndex, to: NodeIndex) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    pub(crate) fn slow_down(&mut self, from: NodeIndex, to: NodeIndex, typical_ns: Ns) {
        self.slow.insert((from, to), typical_ns);
    }

    /// Ends all cuts and slow ways.
    pub(crate) fn heal(&mut self, world: &World) {
        self.cut.clear();
        self.slow.clear();
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.resume(world, link);
        }
    }

    /// Ends the cuts and slow ways of one machine.
    pub(crate) fn heal_node(&mut self, world: &World, node: NodeIndex) {
        self.cut.retain(|(from, to)| *from != node && *to != node);
        self.slow.retain(|(from, to), _| *from != node && *to != node);
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&link].iter().any(|end| end.node == node) {
                self.resume(world, link);
            }
        }
    }

    /// What was held back is on its way again.
    fn resume(&mut self, world: &World, link: u64) {
        for end in 0..2 {
            let (from, to) = (self.links[&link][1 - end].node, self.links[&link][end].node);
            if self.is_cut(from, to) || self.links[&link][end].coming.is_empty() {
                continue;
            }
            let delay = self.delay(from, to);
            let last = self.links[&link][end].coming.back().map_or(0, |(at, ..)| *at);
            world.deliver_at((world.now() + delay).max(last), link, end);
        }
    }

    fn delay(&mut self, from: NodeIndex, to: NodeIndex) -> Ns {
        let typical = self.slow.get(&(from, to)).copied().unwrap_or(self.typical_ns);
        self.rng.delay(typical)
    }

    /// Breaks some connections of a machine.
    pub(crate) fn break_some(&mut self, world: &World, node: NodeIndex) -> Vec<Waker> {
        let mut woken = Vec::new();
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&link].iter().any(|end| end.node == node) && self.rng.once_in(2) {
                woken.extend(self.break_link(world, link, [true, true]));
            }
        }
        woken
    }

    fn break_link(&mut self, world: &World, link: u64, sides: [bool; 2]) -> Vec<Waker> {
        let mut woken = Vec::new();
        let Some(ends) = self.links.get_mut(&link) else { return woken };
        for (end, _) in ends.iter_mut().zip(sides).filter(|(_, hit)| *hit) {
            end.broken = true;
            end.coming.clear();
            end.coming_bytes = 0;
            woken.extend(end.reader.take());
            woken.extend(end.writer.take());
            world.touch(end.node);
        }
        woken
    }

    /// The process on a machine is gone.
    pub(crate) fn node_dies(&mut self, world: &World, node: NodeIndex, power: bool) {
        self.listeners.retain(|_, (owner, _)| *owner != node);
        if power {
            self.off.insert(node);
        }
        let mut woken = Vec::new();
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            let ends = self.links.get_mut(&link).expect("listed");
            let Some(mine) = ends.iter().position(|end| end.node == node && !end.gone) else { continue };
            (ends[mine].gone, ends[mine].silent) = (true, power);
            ends[mine].reader = None;
            ends[mine].writer = None;
            // The kernel of a machine that is up resets the connections of a process that was killed.
            if !power {
                let mut sides = [false; 2];
                sides[1 - mine] = true;
                woken.extend(self.break_link(world, link, sides));
            }
        }
        woken.into_iter().for_each(Waker::wake);
        self.links.retain(|_, ends| !(ends[0].gone && ends[1].gone));
    }

    /// The machine has power again: it resets connections it does not know.
    pub(crate) fn power_on(&mut self, world: &World, node: NodeIndex) -> Vec<Waker> {
        let mut woken = Vec::new();
        if !self.off.remove(&node) {
            return woken;
        }
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            let ends = &self.links[&link];
            if let Some(dead) = ends.iter().position(|end| end.node == node && end.silent) {
                let mut sides = [false; 2];
                sides[1 - dead] = true;
                woken.extend(self.break_link(world, link, sides));
            }
        }
        woken
    }

    fn send(&mut self, world: &World, link: u64, from: usize, segment: Segment) {
        let Some(ends) = self.links.get_mut(&link) else { return };
        let (source, target) = (ends[from].node, ends[1 - from].node);
        let to = &mut ends[1 - from];
        if to.gone || to.broken {
            return;
        }
        let now = world.now();
        if let Segment::Bytes(bytes) = &segment {
            to.coming_bytes += bytes.len();
            if let Some((_, sent, Segment::Bytes(last))) = to.coming.back_mut()
                && *sent == now
            {
                last.extend_from_slice(bytes);
                return;
            }
        }
        let earliest = to.coming.back().map_or(0, |(at, ..)| *at);
        let delay = self.delay(source, target);
        let at = (now + delay).max(earliest);
        let cut = self.is_cut(source, target);
        self.links.get_mut(&link).expect("looked up")[1 - from].coming.push_back((at, now, segment));
        if !cut {
            world.deliver_at(at, link, 1 - from);
        }
    }

    /// Hands over what has arrived by now, and gives who waits for it.
    pub(crate) fn deliver(&mut self, world: &World, link: u64, end: usize) -> Vec<Waker> {
        let mut woken = Vec::new();
        let Some(ends) = self.links.get(&link) else { return woken };
        let (from, to) = (ends[1 - end].node, ends[end].node);
        if self.is_cut(from, to) || self.off.contains(&to) {
            return woken;
        }
        let ends = self.links.get_mut(&link).expect("looked up");
        let (mut bytes, mut last) = (0, false);
        while ends[end].coming.front().is_some_and(|(at, ..)| *at <= world.now()) {
            let Some((.., segment)) = ends[end].coming.pop_front() else { break };
            match segment {
                Segment::Bytes(part) => {
                    bytes += part.len();
                    ends[end].coming_bytes -= part.len();
                    ends[end].arrived.push_back(part.freeze());
                }
                Segment::End => (ends[end].ended, last) = (true, true),
            }
        }
        if bytes == 0 && !last {
            return woken;
        }
        if world.keeps_lines() {
            world.note(&format!("{from} -> {to}: {bytes} bytes{}", if last { ", end" } else { "" }));
        } else {
            world.note(&format!("{from}{to}{bytes}"));
        }
        if let Some(reader) = ends[end].reader.take() {
            woken.push(reader);
            world.touch(to);
        }
        if let Some(writer) = ends[1 - end].writer.take() {
            woken.push(writer);
            world.touch(from);
        }
        woken
    }

    fn open(&mut self, from: NodeIndex, to: NodeIndex) -> (Socket, Socket) {
        let link = self.next;
        self.next += 1;
        let end = |node| End { node, ..End::default() };
        self.links.insert(link, [end(from), end(to)]);
        (Socket { link, end: 0 }, Socket { link, end: 1 })
    }

    fn leave(&mut self, world: &World, link: u64, end: usize) {
        self.send(world, link, end, Segment::End);
        let Some(ends) = self.links.get_mut(&link) else { return };
        ends[end].gone = true;
        if ends[1 - end].gone {
            self.links.remove(&link);
        }
    }
}

/// What a program holds of a connection.
#[derive(Debug)]
struct Socket {
    link: u64,
    end: usize,
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = World::with(|world| {
            let mut net = world.net();
            let Some(ends) = net.links.get_mut(&self.link) else { return Poll::Ready(Err(reset())) };
            let end = &mut ends[self.end];
            if end.broken {
                return Poll::Ready(Err(reset()));
            }
            let mut got = false;
            while buf.remaining() > 0
                && let Some(first) = end.arrived.front_mut()
            {
                let take = first.len().min(buf.remaining());
                buf.put_slice(&first[..take]);
                first.advance(take);
                got = true;
                if first.is_empty() {
                    end.arrived.pop_front();
                }
            }
            if got || end.ended {
                return Poll::Ready(Ok(()));
            }
            end.reader = Some(cx.waker().clone());
            Poll::Pending
        });
        read.unwrap_or_else(|| Poll::Ready(Err(reset())))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = World::with(|world| {
            let mut net = world.net();
            let Some(ends) = net.links.get_mut(&self.link) else { return Poll::Ready(Err(reset())) };
            if ends[self.end].broken || world.is_dying() {
                return Poll::Ready(Err(reset()));
            }
            // To a process that is gone and whose machine is up one can write once more, then comes the reset.
            let room = WINDOW_BYTES.saturating_sub(ends[1 - self.end].coming_bytes);
            if room == 0 {
                ends[self.end].writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let take = buf.len().min(room);
            net.send(world, self.link, self.end, Segment::Bytes(BytesMut::from(&buf[..take])));
            Poll::Ready(Ok(take))
        });
        written.unwrap_or_else(|| Poll::Ready(Err(reset())))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        World::with(|world| {
            if !world.is_dying() {
                world.net().send(world, self.link, self.end, Segment::End);
            }
        });
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        World::with(|world| {
            if !world.is_dying() {
                world.net().leave(world, self.link, self.end);
            }
        });
    }
}

/// Listens for a machine.
pub(crate) fn listen(address: SocketAddr) -> io::Result<Links> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let listening = World::with(|world| {
        let node = world.current().expect("a node listens");
        world.net().listeners.insert(address, (node, sender));
    });
    listening.ok_or_else(|| io::Error::other("outside of the simulation"))?;
    Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
}

/// Connects a machine to an address.
pub(crate) fn connect(address: &str) -> Connecting {
    let address: Result<SocketAddr, _> = address.parse();
    Box::pin(async move {
        let address = address.map_err(io::Error::other)?;
        for _ in 0..CONNECT_TRIES {
            let there = World::with(|world| {
                let mut net = world.net();
                let from = world.current()?;
                let to = *net.hosts.get(&address.ip())?;
                let reachable = !net.is_cut(from, to) && !net.is_cut(to, from) && !net.off.contains(&to);
                Some((reachable, net.delay(from, to)))
            });
            let Some((reachable, delay)) = there.flatten() else {
                return Err(io::ErrorKind::HostUnreachable.into());
            };
            if !reachable {
                tokio::time::sleep(CONNECT_AGAIN).await;
                continue;
            }
            tokio::time::sleep(std::time::Duration::from_nanos(2 * delay)).await;
            let made = World::with(|world| {
                let mut net = world.net();
                let from = world.current()?;
                let (to, acceptor) = net.listeners.get(&address).cloned()?;
                let (near, far) = net.open(from, to);
                world.touch(to);
                drop(net);
                acceptor.send(Ok(Box::new(far))).ok()?;
                Some(near)
            });
            return match made.flatten() {
                Some(socket) => Ok(Box::new(socket) as Box<dyn Link>),
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            };
        }
        Err(io::ErrorKind::TimedOut.into())
    })
}
