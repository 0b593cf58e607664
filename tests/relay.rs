//! The relay: the blocking call, on blocking and on non-blocking sockets, and the state machine.
//! Tokio's form is in `tests/tokio.rs`, held to the same scenes.

mod common;
#[path = "relay/rig.rs"]
mod rig;
#[path = "relay/scenes.rs"]
mod scenes;

macro_rules! play {
    ($form:ident, $module:ident, $($scene:ident),+) => {
        mod $module {
            use crate::{rig, scenes};
            $(#[test]
            fn $scene() {
                scenes::$scene(&rig::$form);
            })+
        }
    };
    ($($form:ident in $module:ident),+) => {$(
        play!(
            $form, $module, requests_and_answers, both_at_once, half_close, empty, one_slow_side,
            close_both, close_both_in_the_middle, idle, not_idle
        );
    )+};
}

play!(BLOCKING in blocking, WAITING in waiting, BY_POLL in by_poll);
