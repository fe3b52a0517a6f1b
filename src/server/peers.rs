//! Who may talk to this process over a socket, as the kernel knows the other end (`SO_PEERCRED`).

use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use crate::throttle::Throttle;

/// Users that are let in.
#[derive(Debug)]
pub(super) struct Peers {
    /// Root, and whoever this process runs as or was started as.
    own: Vec<u32>,
    /// Those that the operator has named.
    named: Vec<u32>,
    refusals: Throttle,
}

impl Peers {
    /// Root, this process's user, and `further` ones; besides, on sockets of front ends, those that were `named`.
    pub(super) fn new(further: Option<u32>, named: Vec<u32>) -> Self {
        let own = [0, geteuid().as_raw()].into_iter().chain(further).collect();
        Self { own, named, refusals: Throttle::default() }
    }

    /// Whether a front end is let in. Whoever made a socket that we `inherited` has chosen who gets at it: then only
    /// what the operator says counts.
    pub(super) fn admit_front_end(&mut self, stream: &UnixStream, inherited: bool) -> bool {
        let anybody = inherited && self.named.is_empty();
        anybody || self.admit(stream, |peers, uid| peers.own.contains(&uid) || peers.named.contains(&uid))
    }

    /// Whether an operator is let in.
    pub(super) fn admit_operator(&mut self, stream: &UnixStream) -> bool {
        self.admit(stream, |peers, uid| peers.own.contains(&uid))
    }

    fn admit(&mut self, stream: &UnixStream, may: impl Fn(&Self, u32) -> bool) -> bool {
        let uid = match socket_peercred(stream) {
            Ok(peer) => peer.uid.as_raw(),
            Err(error) => {
                tracing::warn!(%error, "cannot tell whose connection this is; closing it");
                return false;
            }
        };
        let admitted = may(self, uid);
        if !admitted && let Some(not_shown_before) = self.refusals.admit() {
            tracing::warn!(uid, not_shown_before, "refused a connection of this user (see --allow-uid)");
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_were_named_get_in_beside_oneself() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let own = geteuid().as_raw();
        let mut peers = Peers::new(None, Vec::new());
        assert!(peers.admit_front_end(&stream, false) && peers.admit_operator(&stream));
        let mut strangers = Peers { own: vec![own + 1], named: Vec::new(), refusals: Throttle::default() };
        assert!(!strangers.admit_front_end(&stream, false) && !strangers.admit_operator(&stream));
        assert!(strangers.admit_front_end(&stream, true), "its maker has let it in");
        strangers.named = vec![own + 2];
        assert!(!strangers.admit_front_end(&stream, true));
        strangers.named.push(own);
        assert!(strangers.admit_front_end(&stream, true) && !strangers.admit_operator(&stream));
    }
}
