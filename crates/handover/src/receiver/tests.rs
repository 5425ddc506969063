use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use super::*;
use crate::stream::tests::{end, pair, soon};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The step of the new process at which a handover stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Begin,
    Receive,
    Commit,
    Serving,
}

/// A message of an old process, with this many descriptors.
type Sent = (FromOld<String, u32>, usize);

fn hello() -> Hello {
    Hello { protocol: PROTOCOL, version: "1.0.0".into(), ..Hello::default() }
}

/// Returns all messages of an old process that hands over two clients.
fn all() -> Vec<Sent> {
    vec![
        (FromOld::Accepted(hello()), 0),
        (FromOld::Part(vec![1]), 0),
        (FromOld::Part(vec![2, 3]), 0),
        (FromOld::Server("state".into()), 1),
        (FromOld::Descriptors, 2),
        (FromOld::Clients(vec![7, 8]), 2),
        (FromOld::End { clients: 2 }, 0),
        (FromOld::Commit, 0),
    ]
}

fn send(stream: &FramedStream, messages: &[Sent]) {
    let file = File::open("/dev/null").unwrap();
    for (message, descriptors) in messages {
        let descriptors: Vec<BorrowedFd<'_>> = (0..*descriptors).map(|_| file.as_fd()).collect();
        stream.send_with(message, &descriptors, soon()).unwrap();
    }
}

/// How far the new process comes, and the error that stops it. `hangs` is the step at which it is to give up
/// soon.
fn take_over(stream: FramedStream, hangs: Option<At>) -> (At, Option<ReceiveError>) {
    let timeout = |step| if hangs == Some(step) { Duration::from_millis(50) } else { TIMEOUT };
    let hello = Hello { version: "2.0.0".into(), ..Hello::default() };
    let receiver = match HandoverReceiver::begin(stream, hello, timeout(At::Begin)) {
        Ok(receiver) => receiver,
        Err(error) => return (At::Begin, Some(error)),
    };
    assert_eq!(receiver.old_process(), &self::hello());
    let mut parts = Vec::new();
    let take_part = |part: Vec<u8>| match part.len() {
        0 => Err("an empty part".into()),
        _ => {
            parts.push(part);
            Ok(())
        }
    };
    let received = match receiver.receive::<String, u32>(5, timeout(At::Receive), take_part) {
        Ok(received) => received,
        Err(error) => return (At::Receive, Some(error)),
    };
    assert_eq!(parts, [vec![1], vec![2, 3]]);
    assert_eq!((received.server.state.as_str(), received.server.descriptors.len()), ("state", 3));
    let clients: Vec<_> = received.clients.iter().map(|client| client.state).collect();
    assert_eq!(clients, [7, 8]);
    match received.commit(timeout(At::Commit)) {
        Ok(committed) => (At::Serving, committed.old_process.report_serving(TIMEOUT).err()),
        Err(error) => (At::Commit, Some(error)),
    }
}

/// Returns the step at which the new process is after this many messages.
fn step(messages: usize) -> At {
    match messages {
        0 => At::Begin,
        1..7 => At::Receive,
        _ => At::Commit,
    }
}

#[test]
fn an_old_process_that_sends_everything_hears_each_step() {
    let (old, new) = pair();
    send(&old, &all());
    let thread = thread::spawn(|| take_over(new, None));
    let Ok(FirstMessage::Hello(new)) = old.receive(soon()) else { panic!("the hello comes first") };
    assert_eq!((new.protocol, new.newest, new.version.as_str()), (OLDEST_PROTOCOL, PROTOCOL, "2.0.0"));
    assert_eq!(old.receive::<FromNew>(soon()).unwrap(), FromNew::Ready { max_clients: 5 });
    assert_eq!(old.receive::<FromNew>(soon()).unwrap(), FromNew::Complete { clients: 2 });
    assert_eq!(old.receive::<FromNew>(soon()).unwrap(), FromNew::Serving);
    let (at, error) = thread.join().unwrap();
    assert!(error.is_none() && at == At::Serving, "{error:?}");
}

#[test]
fn an_old_process_that_ends_after_any_message_is_noticed_and_nothing_is_taken_over() {
    for messages in 0..all().len() {
        let (old, new) = pair();
        send(&old, &all()[..messages]);
        end(&old);
        let (at, error) = take_over(new, None);
        assert!(matches!(error, Some(ReceiveError::Stream(StreamError::Gone))), "{messages}: {error:?}");
        assert_eq!(at, step(messages), "{messages}");
    }
}

#[test]
fn an_old_process_that_hangs_after_any_message_is_given_up_and_nothing_is_taken_over() {
    for messages in 0..all().len() {
        let (old, new) = pair();
        send(&old, &all()[..messages]);
        let (at, error) = take_over(new, Some(step(messages)));
        assert!(matches!(error, Some(ReceiveError::Stream(StreamError::TimedOut))), "{messages}: {error:?}");
        assert_eq!(at, step(messages), "{messages}");
        drop(old);
    }
}

#[test]
fn a_message_that_is_left_out_or_has_wrong_descriptors_is_an_error() {
    let last = all().len() - 1;
    // Without a part or the descriptors, there are fewer of them, which only the binary can tell.
    for left_out in (0..last).filter(|index| ![1, 2, 4].contains(index)) {
        let mut messages = all();
        messages.remove(left_out);
        let (old, new) = pair();
        send(&old, &messages);
        let (at, error) = take_over(new, None);
        let refused = matches!(error, Some(ReceiveError::Unexpected | ReceiveError::Stream(_)));
        assert!(refused && at != At::Serving, "{left_out}: {at:?}, {error:?}");
    }
    let (old, new) = pair();
    let mut messages = all();
    messages[5].1 = 1;
    send(&old, &messages);
    assert!(matches!(take_over(new, None), (At::Receive, Some(ReceiveError::Unexpected))));
}

#[test]
fn a_state_that_is_not_understood_is_an_error() {
    let (old, new) = pair();
    old.send(&FromOld::<(), ()>::Accepted(hello()), soon()).unwrap();
    old.send(&FromOld::<u32, ()>::Server(1), soon()).unwrap();
    let (at, error) = take_over(new, None);
    assert!(matches!(error, Some(ReceiveError::Stream(StreamError::NotUnderstood(_)))), "{error:?}");
    assert_eq!(at, At::Receive);
}

#[test]
fn a_part_that_cannot_be_taken_over_or_comes_too_late_is_an_error() {
    let (old, new) = pair();
    let mut messages = all();
    messages[2].0 = FromOld::Part(vec![]);
    send(&old, &messages);
    let (at, error) = take_over(new, None);
    assert!(matches!(&error, Some(ReceiveError::Part(why)) if why.to_string() == "an empty part"));
    assert_eq!(at, At::Receive, "before the commit");
    let (old, new) = pair();
    let mut messages = all();
    messages.swap(2, 3);
    send(&old, &messages);
    assert!(matches!(take_over(new, None), (At::Receive, Some(ReceiveError::Unexpected))));
}

#[test]
fn the_time_for_the_rest_begins_with_the_last_part() {
    let (old, new) = pair();
    send(&old, &all()[..1]);
    let thread = thread::spawn(|| {
        let receiver = HandoverReceiver::begin(new, Hello::default(), TIMEOUT).unwrap();
        receiver.receive::<String, u32>(5, Duration::from_millis(500), |_| Ok(())).err()
    });
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(200));
        send(&old, &all()[1..2]);
    }
    send(&old, &all()[3..7]);
    assert!(thread.join().unwrap().is_none());
}

#[test]
fn a_refusal_is_reported_with_its_reason_and_another_protocol_with_its_version() {
    let (old, new) = pair();
    old.send(&crate::refusal(&"not now"), soon()).unwrap();
    let (_, error) = take_over(new, None);
    assert_eq!(error.unwrap().to_string(), "the old process refused: not now");
    let (old, new) = pair();
    let other = Hello { protocol: OLDEST_PROTOCOL - 1, ..hello() };
    old.send(&FromOld::<(), ()>::Accepted(other), soon()).unwrap();
    let (_, error) = take_over(new, None);
    let expected = "the old process, version 1.0.0, speaks version 2 of the handover, this one 3 to 4";
    assert_eq!(error.unwrap().to_string(), expected);
}

#[test]
fn an_old_process_of_the_last_version_is_taken_over_from() {
    let (old, new) = pair();
    let mut messages = all();
    messages[0].0 = FromOld::Accepted(Hello { protocol: OLDEST_PROTOCOL, ..hello() });
    send(&old, &messages);
    let receiver = HandoverReceiver::begin(new, Hello::default(), TIMEOUT).unwrap();
    assert_eq!(receiver.old_process().protocol, OLDEST_PROTOCOL);
}
