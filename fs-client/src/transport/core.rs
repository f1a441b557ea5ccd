//! Which requests of a session are unanswered, and what may be said about them: no clock, thread
//! or socket in here.
//!
//! Promises, for any order of replies and losses of connections: each request is completed at most
//! once; what is to be sent again after a loss is exactly what was not answered, in the order of
//! the ids; and no request is ever sent with an id below a `settled_below` that was told before.

use std::collections::BTreeMap;

use proto::RequestId;

/// The unanswered requests of all channels of a session.
#[derive(Debug)]
pub struct SessionCore<T> {
    next: RequestId,
    unanswered: BTreeMap<RequestId, (u8, T)>,
}

impl<T> SessionCore<T> {
    /// A session without requests.
    pub fn new() -> Self {
        Self { next: RequestId(1), unanswered: BTreeMap::new() }
    }

    /// Take a request in and give it the next id. It is unanswered from now on.
    pub fn begin(&mut self, channel: u8, request: T) -> RequestId {
        let id = self.next;
        self.next = id.next();
        self.unanswered.insert(id, (channel, request));
        id
    }

    /// Ids below this one will never be sent again.
    pub fn settled_below(&self) -> RequestId {
        self.unanswered.first_key_value().map_or(self.next, |(id, _)| *id)
    }

    /// A reply came on `channel`, or the request is given up: it will never be sent again.
    /// `None` when no such request is unanswered on that channel.
    pub fn complete(&mut self, channel: u8, id: RequestId) -> Option<T> {
        let (of, _) = self.unanswered.get(&id)?;
        if *of != channel {
            return None;
        }
        self.unanswered.remove(&id).map(|(_, request)| request)
    }

    /// The request behind an id, as long as it is unanswered on `channel`.
    pub fn get(&self, channel: u8, id: RequestId) -> Option<&T> {
        self.unanswered.get(&id).filter(|(of, _)| *of == channel).map(|(_, request)| request)
    }

    /// What a new connection of `channel` must send again, in this order.
    pub fn unanswered(&self, channel: u8) -> impl Iterator<Item = (RequestId, &T)> {
        self.unanswered
            .iter()
            .filter(move |(_, (of, _))| *of == channel)
            .map(|(id, (_, request))| (*id, request))
    }

    /// How many requests are unanswered, over all channels.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.unanswered.len()
    }

    /// The server wants ids from `first` on. Only before anything was sent: requests that wait for
    /// the first connection get new ids.
    pub fn start_at(&mut self, first: RequestId) {
        if self.settled_below() >= first {
            return;
        }
        self.next = first;
        for (_, (channel, request)) in std::mem::take(&mut self.unanswered) {
            self.begin(channel, request);
        }
    }

    /// Give up everything.
    pub fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.unanswered).into_values().map(|(_, request)| request).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    const CHANNELS: u8 = 2;

    #[derive(Clone, Debug)]
    enum Step {
        Begin {
            channel: u8,
        },
        /// The server takes the n-th frame that is on its way on the channel.
        Receive {
            channel: u8,
        },
        /// The server answers one of the requests that it has.
        Answer {
            channel: u8,
            pick: usize,
        },
        /// The n-th reply on its way arrives.
        Reply {
            channel: u8,
            pick: usize,
        },
        /// The connection is lost with all that is on it, and comes back.
        Lose {
            channel: u8,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let channel = 0..CHANNELS;
        prop_oneof![
            3 => channel.clone().prop_map(|channel| Step::Begin { channel }),
            3 => channel.clone().prop_map(|channel| Step::Receive { channel }),
            3 => (channel.clone(), 0..8usize).prop_map(|(channel, pick)| Step::Answer { channel, pick }),
            3 => (channel.clone(), 0..8usize).prop_map(|(channel, pick)| Step::Reply { channel, pick }),
            1 => channel.prop_map(|channel| Step::Lose { channel }),
        ]
    }

    #[derive(Default)]
    struct World {
        /// (id, settled_below) on their way to the server.
        wire: [VecDeque<(RequestId, RequestId)>; CHANNELS as usize],
        admitted: [Vec<RequestId>; CHANNELS as usize],
        replies: [Vec<RequestId>; CHANNELS as usize],
        settled: RequestId,
        /// Payloads by id as first sent.
        named: BTreeMap<RequestId, u32>,
        completed: BTreeSet<u32>,
    }

    impl World {
        fn send(&mut self, core: &SessionCore<u32>, channel: u8, id: RequestId, payload: u32) {
            let known = self.named.insert(id, payload);
            assert!(known.is_none_or(|p| p == payload), "an id names one request for ever");
            self.wire[channel as usize].push_back((id, core.settled_below()));
        }
    }

    fn run(steps: Vec<Step>) {
        let mut core = SessionCore::new();
        let mut world = World::default();
        let mut payload = 0;
        let mut finish: Vec<Step> = Vec::new();
        for _ in 0..steps.len() {
            for channel in 0..CHANNELS {
                finish.extend([
                    Step::Receive { channel },
                    Step::Answer { channel, pick: 0 },
                    Step::Reply { channel, pick: 0 },
                ]);
            }
        }
        for step in steps.into_iter().chain(finish) {
            match step {
                Step::Begin { channel } => {
                    payload += 1;
                    let id = core.begin(channel, payload);
                    world.send(&core, channel, id, payload);
                }
                Step::Receive { channel } => {
                    let c = channel as usize;
                    if let Some((id, settled)) = world.wire[c].pop_front() {
                        assert!(id >= world.settled, "{id} was sent after {} was settled", world.settled);
                        world.settled = world.settled.max(settled);
                        world.admitted[c].push(id);
                    }
                }
                Step::Answer { channel, pick } => {
                    let c = channel as usize;
                    if !world.admitted[c].is_empty() {
                        let at = pick % world.admitted[c].len();
                        let id = world.admitted[c].remove(at);
                        world.replies[c].push(id);
                    }
                }
                Step::Reply { channel, pick } => {
                    let c = channel as usize;
                    if !world.replies[c].is_empty() {
                        let at = pick % world.replies[c].len();
                        let id = world.replies[c].remove(at);
                        assert_eq!(core.complete((channel + 1) % CHANNELS, id), None, "wrong channel");
                        let payload = core.complete(channel, id).expect("one reply per request");
                        assert_eq!(world.named[&id], payload);
                        assert!(world.completed.insert(payload), "completed twice");
                        assert_eq!(core.complete(channel, id), None);
                    }
                }
                Step::Lose { channel } => {
                    let c = channel as usize;
                    world.wire[c].clear();
                    world.admitted[c].clear();
                    world.replies[c].clear();
                    let again: Vec<_> = core.unanswered(channel).map(|(id, p)| (id, *p)).collect();
                    assert!(again.is_sorted());
                    for (id, p) in again {
                        world.send(&core, channel, id, p);
                    }
                }
            }
        }
        assert_eq!(world.completed.len(), payload as usize, "every request is completed in the end");
        assert_eq!((core.len(), core.settled_below()), (0, RequestId(payload as u64 + 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn each_request_is_completed_once_and_never_sent_when_settled(steps in proptest::collection::vec(step(), 0..80)) {
            run(steps);
        }
    }

    #[test]
    fn requests_that_wait_for_the_first_connection_get_ids_the_server_takes() {
        let mut core = SessionCore::new();
        core.begin(0, 'a');
        core.begin(1, 'b');
        core.start_at(RequestId(100));
        assert_eq!(core.unanswered(0).collect::<Vec<_>>(), [(RequestId(100), &'a')]);
        assert_eq!(core.unanswered(1).collect::<Vec<_>>(), [(RequestId(101), &'b')]);
        assert_eq!(core.begin(0, 'c'), RequestId(102));
        core.start_at(RequestId(5));
        assert_eq!(core.settled_below(), RequestId(100));
    }
}
