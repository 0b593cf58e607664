//! The awaiting forms: transfers over all kinds of ends, dropped and driven anew; relays, held to the
//! same scenes as the other forms; cold files.
// posix_fadvise(2) and cachestat(2), and calls in front of libc's.
#![allow(unsafe_code)]

#[path = "relay/breaks.rs"]
mod breaks;
#[path = "hazards/child.rs"]
mod child;
#[path = "tokio/cold.rs"]
mod cold;
mod common;
#[path = "tokio/ends.rs"]
mod ends;
#[path = "tokio/forms.rs"]
mod forms;
#[path = "streams/lane.rs"]
mod lane;
#[path = "tokio/low_water.rs"]
mod low_water;
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
            use crate::{breaks, forms, scenes};
            $($(#[test]
            fn $scene() {
                $scenes::$scene(&forms::$form);
            })+)+
        }
    };
    ($($form:ident in $module:ident),+) => {$(
        play!(
            $form, $module,
            scenes: requests_and_answers, urgent_data, both_at_once, half_close, empty, one_slow_side,
                close_both, close_both_in_the_middle, close_both_to_one_who_talks, idle, not_idle;
            breaks: resets, not_connected_any_more, deadline, rate;
        );
    )+};
}

play!(STREAMS in streams, SPAWNED in spawned, DROPPED in dropped);

#[test]
fn schedules_of_the_awaiting_relay() {
    child::alone("schedules_of_the_awaiting_relay", || {
        // What tokio opens once for the whole process does not count.
        drop(forms::single());
        schedules::in_form(&forms::STREAMS);
        schedules::in_form(&forms::SPAWNED);
        schedules::in_form(&forms::DROPPED);
    });
}
