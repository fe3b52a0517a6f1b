//! Requests that have synced, and whether their success may be told: see [`syncs`](super::syncs).

use super::Worker;
use super::tables::{Failure, Piece, RequestId};
use crate::io::Engine;
use crate::virtio::request::RequestKind;
use crate::virtio::wire::Status;

impl<E: Engine> Worker<E> {
    /// Counts in the sync that a piece is.
    pub(super) fn begin_sync(&mut self, piece: &mut Piece) {
        let failures = self.syncs.failures();
        self.requests.get(piece.request).failures_before.get_or_insert(failures);
        piece.sync = Some(self.syncs.begin());
    }

    /// Whether the success of a request that has synced, and of which nothing is left, may be told; a failure may be.
    /// If the syncs beside it have not ended yet, it is [doubted](Self::end_doubts) until they have.
    pub(super) fn is_believed(&mut self, id: RequestId) -> bool {
        if self.requests.get(id).status != Status::Ok {
            return true;
        }
        let now = self.syncs.now();
        if !self.syncs.have_ended(now) {
            self.doubted.push_back((id, now));
            return false;
        }
        self.judge_success(id);
        true
    }

    /// Ends the requests that were doubted for as long as others synced beside them. Returns whether there were any.
    pub(super) fn end_doubts(&mut self) -> bool {
        let mut ended = false;
        // Their numbers grow.
        while let Some((id, _)) = self.doubted.pop_front_if(|(_, number)| self.syncs.have_ended(*number)) {
            self.judge_success(id);
            self.end_believed(id);
            ended = true;
        }
        ended
    }

    /// The syncs of a request and all that were beside them have ended: what did they come to?
    fn judge_success(&mut self, id: RequestId) {
        let volume = &self.disk.volume;
        let active = self.requests.get(id);
        let flush = active.request.kind == RequestKind::Flush;
        if active.failures_before == Some(self.syncs.failures()) && !(flush && volume.has_sync_failed()) {
            return;
        }
        // The failure was another's to report, and may have been about what this one covers.
        active.failure = if flush { Failure::Final } else { volume.judge_failure(false, true) };
        active.fail(Status::IoError);
    }
}
