//! The relay: the blocking call, on blocking and on non-blocking sockets, and the state machine.
//! Tokio's form is in `tests/tokio.rs`, held to the same scenes.
// setrlimit(2) has no safe wrapper among the dependencies.
#![allow(unsafe_code)]

#[path = "relay/breaks.rs"]
mod breaks;
#[path = "hazards/child.rs"]
mod child;
mod common;
#[path = "relay/limits.rs"]
mod limits;
#[path = "relay/pipes.rs"]
mod pipes;
#[path = "relay/rig.rs"]
mod rig;
#[path = "relay/scenes.rs"]
mod scenes;
#[path = "relay/schedules.rs"]
mod schedules;

macro_rules! play {
    ($form:ident, $module:ident, $($scenes:ident: $($scene:ident),+;)+) => {
        mod $module {
            use crate::{breaks, rig, scenes};
            $($(#[test]
            fn $scene() {
                $scenes::$scene(&rig::$form);
            })+)+
        }
    };
    ($($form:ident in $module:ident),+) => {$(
        play!(
            $form, $module,
            scenes: requests_and_answers, urgent_data, both_at_once, half_close, empty, one_slow_side,
                close_both, close_both_in_the_middle, close_both_to_one_who_talks, idle, not_idle;
            breaks: resets, not_connected_any_more, rate;
        );
    )+};
}

play!(BLOCKING in blocking, WAITING in waiting, BY_POLL in by_poll);

// An event loop knows its deadlines by itself: see `limits`.
#[test]
fn deadline_of_the_blocking_call() {
    breaks::deadline(&rig::BLOCKING);
    breaks::deadline(&rig::WAITING);
}

#[test]
fn a_thousand_schedules() {
    child::alone("a_thousand_schedules", schedules::singly);
}

#[test]
fn schedules_of_the_blocking_call() {
    child::alone("schedules_of_the_blocking_call", || {
        schedules::in_form(&rig::BLOCKING);
        schedules::in_form(&rig::WAITING);
    });
}
