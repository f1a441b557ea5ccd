//! A move as server-sent events: each a whole `MoveStatus`, the last one final.
//!
//! States are sampled: whoever reads slowly or watches a move that changes quickly misses some,
//! never the final one.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::Event;
use futures::Stream;
use proto::control::MoveStatus;
use tokio::sync::watch;
use tokio::time::Instant;

/// The least time between two events, except before the final one.
const SPACING: Duration = Duration::from_millis(100);

struct Following {
    watch: watch::Receiver<MoveStatus>,
    /// When the last event went out.
    sent: Option<Instant>,
    over: bool,
}

/// The states of a move from now to its end.
pub fn of_move(watch: watch::Receiver<MoveStatus>) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(Following { watch, sent: None, over: false }, |mut following| async move {
        let status = following.next().await?;
        let text = serde_json::to_string(&status).expect("a MoveStatus has string keys only");
        Some((Ok(Event::default().data(text)), following))
    })
}

impl Following {
    /// `None` when the final state was sent, or when nobody keeps the move any more.
    async fn next(&mut self) -> Option<MoveStatus> {
        if self.over {
            return None;
        }
        if let Some(sent) = self.sent {
            let watch = &mut self.watch;
            watch.changed().await.ok()?;
            tokio::select! {
                () = tokio::time::sleep_until(sent + SPACING) => {}
                _ = watch.wait_for(|status| status.phase.is_final()) => {}
            }
        }
        self.sent = Some(Instant::now());
        let status = self.watch.borrow_and_update().clone();
        self.over = status.phase.is_final();
        Some(status)
    }
}
