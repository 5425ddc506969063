use lastcall_broker::{Config, Delivery, MemoryBroker, ReceiverSet};
use lastcall_core::Position;

use super::{super::outbox::Round, *};

#[derive(Debug)]
struct NoDelivery;

impl Delivery for NoDelivery {
    fn deliver(&self, _: &ChannelName, _: Epoch, _: &[Arc<Publication>], _: ReceiverSet) {}
    fn reset(&self, _: &ChannelName, _: Position, _: ReceiverSet) {}
}

fn broker() -> MemoryBroker {
    MemoryBroker::new(Config::default(), Box::new(NoDelivery))
}

/// Returns shared buffers, each of them another one.
fn buffers(count: u8) -> Vec<Bytes> {
    (0..count).map(|n| Bytes::from(vec![n; 100])).collect()
}

fn outbox(buffers: &[Bytes], written: usize) -> Outbox {
    let mut outbox = Outbox::default();
    for (index, buffer) in buffers.iter().enumerate() {
        outbox.push(buffer.clone(), if index == 0 { written } else { 0 }, Round::default());
    }
    outbox
}

#[tokio::test]
async fn queues_of_clients_behind_by_the_same_publications_are_a_few_ranges() {
    let shared = buffers(200);
    let mut small = outbox(&shared[150..], 0);
    // Small messages of its own, between shared ones.
    small.push(Bytes::from_static(b"small"), 0, Round::default());
    small.push(shared[199].clone(), 0, Round::default());
    let clients = [small, outbox(&shared, 7), outbox(&shared[1..], 99), outbox(&shared[160..180], 0)];
    let (broker, mut unread) = (broker(), UnreadBuffers::new(UNREAD_BUDGET));
    let queues: Vec<QueueSnapshot> = clients
        .iter()
        .map(|client| {
            let queue = unread.add(client, 0, &broker).unwrap();
            rmp_serde::from_slice(&rmp_serde::to_vec_named(&queue).unwrap()).unwrap()
        })
        .collect();
    let ranges = queues.iter().map(|queue| queue.ranges.iter().map(|range| (range.0, range.1)).collect());
    let expected =
        [vec![(0, 51), (49, 1)], vec![(51, 150), (0, 50)], vec![(52, 149), (0, 50)], vec![(10, 20)]];
    assert_eq!(ranges.collect::<Vec<Vec<_>>>(), expected);
    let (buffers, _) = unread.into_parts();
    assert_eq!(buffers.len(), 201, "each buffer is there once");
    let received = ReceivedUnread { buffers, ..ReceivedUnread::default() };
    let mut histories = Histories::new(&broker);
    for (client, queue) in clients.into_iter().zip(queues) {
        received.check(&queue).unwrap();
        assert_eq!(received.restore(queue, &mut histories).await, (client, true));
    }
}

#[test]
fn a_range_of_which_a_buffer_did_not_come_is_refused() {
    let received = ReceivedUnread { buffers: buffers(3), ..ReceivedUnread::default() };
    let check = |range: BufferRange, written| {
        let queue = QueueSnapshot { ranges: vec![range], written, ..QueueSnapshot::default() };
        received.check(&queue)
    };
    assert_eq!(check(BufferRange(0, 3), 99), Ok(()));
    assert_eq!(check(BufferRange(1, 2), 0), Ok(()));
    for (first, count) in [(0, 4), (1, 3), (3, 1), (4, 0), (0, u32::MAX), (u32::MAX - 1, u32::MAX)] {
        assert_eq!(check(BufferRange(first, count), 0), Err(InvalidQueue::Buffers(first, count)));
    }
    assert_eq!(check(BufferRange(0, 3), 100), Err(InvalidQueue::Written));
    assert_eq!(check(BufferRange(2, 0), 1), Err(InvalidQueue::Written));
    let missing = InvalidQueue::Replays { replays: 1, there: 0 };
    assert_eq!(check(BufferRange(IS_REPLAY, 1), 0), Err(missing));
}
