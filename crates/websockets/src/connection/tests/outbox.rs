//! The queue of one client.

use std::io::{self, ErrorKind, Write};

use bytes::Bytes;

use crate::{
    codec::Frame,
    connection::{
        memory_stream::MemoryStream,
        outbox::{Outbox, Round},
    },
    protocol::Form,
};

fn text(n: usize) -> Bytes {
    Frame::text(n.to_string().repeat(n)).bytes().clone()
}

#[test]
fn the_queue_is_written_in_order_whatever_the_socket_takes_at_a_time() {
    let expected: Vec<u8> = (1..40).flat_map(|n| text(n).to_vec()).collect();
    for capacity in 1..60 {
        let mut outbox = Outbox::default();
        let mut socket = MemoryStream::default();
        for n in 1..40 {
            outbox.push(text(n), 0, Round::default());
        }
        assert_eq!(outbox.len(), expected.len());
        while !outbox.is_empty() {
            socket.capacity = capacity;
            outbox.flush(&mut socket).unwrap();
            assert_eq!(outbox.len() + socket.written.len(), expected.len());
        }
        assert_eq!(socket.written, expected, "{capacity} bytes at a time");
    }
}

#[test]
fn a_partial_frame_is_completed_and_the_rest_dropped() {
    for capacity in 0..40 {
        let mut outbox = Outbox::default();
        let mut socket = MemoryStream { capacity, ..MemoryStream::default() };
        let chunk: Vec<u8> = [text(5), text(7)].concat();
        outbox.push(chunk.into(), 0, Round::default());
        outbox.push(text(9), 0, Round::default());
        outbox.flush(&mut socket).unwrap();
        outbox.truncate_to_partial_message(Form::WebSocket);
        socket.capacity = 1000;
        outbox.flush(&mut socket).unwrap();
        let ends = [0, 7, 16, 27];
        assert!(outbox.is_empty());
        assert_eq!(socket.written.len(), *ends.iter().find(|end| **end >= capacity.min(27)).unwrap());
    }
}

#[test]
fn a_socket_that_takes_nothing_without_blocking_is_an_error() {
    struct Zero;
    impl Write for Zero {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut outbox = Outbox::default();
    outbox.push(text(1), 0, Round::default());
    assert_eq!(outbox.flush(Zero).unwrap_err().kind(), ErrorKind::WriteZero);
}

mod live {
    //! Publications for a client with several channels, of which its socket does not take all.

    use std::sync::Arc;

    use lastcall_core::{ChannelName, Epoch, Publication, Publisher};

    use super::super::*;
    use crate::{encoded::EncodedPublication, encoded::PublicationRun, protocol::chunk};

    const COUNT: usize = 300;

    const CONFIG: ConnectionConfig = ConnectionConfig { max_queue: 10_000, ..super::super::CONFIG };

    fn run(offsets: impl Iterator<Item = u64>) -> PublicationRun {
        let publication = |offset| {
            let data = serde_json::value::to_raw_value(&offset).unwrap();
            let publication = Publication { offset, ..Publication::new(Publisher::Api, data) };
            Arc::new(EncodedPublication::new(Epoch(1), Arc::new(publication)))
        };
        let channel: ChannelName = "c".parse().unwrap();
        PublicationRun { channel, publications: offsets.map(publication).collect() }
    }

    fn event_stream(form: Form, capacity: usize) -> Connection<MemoryStream> {
        Connection { form, ..connection(capacity) }
    }

    /// Returns the ids of the events, of which each must be whole and have these positions around its own.
    fn offsets(form: Form, written: &[u8], [before, after]: [&str; 2]) -> Vec<u64> {
        let mut events = Vec::new();
        let mut rest = written;
        while form == Form::EventStream && !rest.is_empty() {
            let end = chunk::next_boundary(rest, 1);
            events.extend_from_slice(&chunk::content(&Bytes::copy_from_slice(&rest[..end])));
            rest = &rest[end..];
        }
        let events = if form == Form::EventStream { events } else { written.to_vec() };
        let events = String::from_utf8(events).unwrap();
        let (start, end) = (format!("id: {before}0000000000000001-"), format!("{after}\n"));
        let events = events.strip_suffix("\n\n").expect("the last event is whole").split("\n\n");
        let offset = |event: &str| {
            let (offset, rest) = event.strip_prefix(&start).unwrap().split_once(&end).unwrap();
            assert!(rest.contains(&format!("\"data\":{offset}}}")), "{event}");
            offset.parse().unwrap()
        };
        events.map(offset).collect()
    }

    #[test]
    fn what_a_socket_does_not_take_costs_pointers_and_is_sent_once_and_in_order() {
        let (before, after) = ("b".repeat(1000) + ",", ",".to_owned() + &"a".repeat(1500));
        let around = [before.as_str(), after.as_str()];
        let (run, next) = (run(1..=COUNT as u64), run([COUNT as u64 + 1, COUNT as u64 + 2].into_iter()));
        for form in [Form::EventStream, Form::UnchunkedEventStream] {
            for taken in [0, 1, 2_000, 16_384, 20_000, 65_000, 70_000, 300_000, usize::MAX] {
                for step in [999, 17_000, 1_000_000] {
                    let mut connection = event_stream(form, taken);
                    let round = Round::default().next();
                    let (outcome, encoded) = connection.send_among(&run, around, round, &CONFIG);
                    assert_eq!(outcome, Outcome::Unchanged);
                    // Nobody encodes 800 kB for a client that does not read.
                    let all = COUNT * 2_600;
                    assert!(encoded < taken.saturating_mul(2).saturating_add(180_000), "{encoded} of {all}");
                    let queued = connection.queued();
                    assert!(queued < 20_000 + COUNT * 200, "{queued} bytes of {all}");
                    let (outcome, _) = connection.send_among(&next, around, round, &CONFIG);
                    assert_eq!(outcome, Outcome::Unchanged);
                    let _ = drain(&mut connection, step);
                    assert_eq!(connection.queued(), 0);
                    let got = offsets(form, &connection.stream.written, around);
                    assert_eq!(got, (1..=COUNT as u64 + 2).collect::<Vec<_>>(), "{taken} {step}");
                    // Its cost is given back: it may get more in another round.
                    let (outcome, _) = connection.send_among(&next, around, round.next(), &CONFIG);
                    assert_eq!(outcome, Outcome::Unchanged);
                }
            }
        }
    }

    #[test]
    fn what_waits_counts_in_the_next_round_and_little_of_it_is_kept_by_a_close() {
        let run = run(1..=COUNT as u64);
        let around = ["b,", ",a"];
        for taken in [0, 5_000, 17_000] {
            let mut connection = event_stream(Form::EventStream, taken);
            let round = Round::default().next();
            for _ in 0..2 {
                let (outcome, _) = connection.send_among(&run, around, round, &CONFIG);
                assert_eq!(outcome, Outcome::Unchanged, "it could not read yet");
            }
            let (outcome, _) = connection.send_among(&run, around, round.next(), &CONFIG);
            assert_eq!(outcome, Outcome::TooSlow);
            let _ = connection.close(CloseReason::SlowConsumer, None);
            assert!(connection.queued() < 20_000, "{} bytes", connection.queued());
            let _ = drain(&mut connection, 1000);
            let written = &connection.stream.written;
            let events = written.strip_suffix(&chunk::LAST_CHUNK[..]).unwrap();
            if taken > 0 {
                let got = offsets(Form::EventStream, events, around);
                assert_eq!(got, (1..=got.len() as u64).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn publications_whose_positions_do_not_follow_one_another_are_handed_over_as_several() {
        let run = run([1, 2, 7, 8, 9].into_iter());
        let form = replay::ReplayForm::new(Form::EventStream, String::new(), String::new());
        let lens =
            |first| replay::Replay::of_run(&run, first, &form).map(|one| one.len()).collect::<Vec<_>>();
        assert_eq!((lens(0), lens(1), lens(3)), (vec![2, 3], vec![1, 3], vec![2]));
    }
}
