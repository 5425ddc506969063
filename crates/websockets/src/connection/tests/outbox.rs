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
