//! A broker that has taken over from another one answers as that one would.

use super::super::age_queue::QueueKey;
use super::model::{SIZE, Step, TTL, steps};
use std::cell::Cell;

use super::{super::export::PartLimits, *};
use crate::{BrokerPart, ChannelPart, MemoryExport, PartError, Published, snapshot::ImportTime};

/// Checks what the broker's own code relies on.
fn check_invariants(broker: &MemoryBroker) {
    let state = broker.lock();
    let mut bytes = 0;
    for (name, channel) in &state.channels {
        let size = broker.rules.retention(channel.rule).size;
        assert!(channel.log.kept().len() <= size, "{name} keeps too much");
        let first = channel.log.top().offset + 1 - channel.log.kept().len() as u64;
        assert!(
            channel.log.kept().zip(first..).all(|(one, offset)| one.offset == offset),
            "{name}: {channel:?}"
        );
        bytes += channel.log.kept().map(|one| one.size() + 100).sum::<usize>();
        bytes += if channel.is_idle() { MemoryChannel::idle_cost(name.as_str()) } else { 0 };
        let (queued, key) = (channel.in_age_queue, channel.queue_key());
        assert_eq!(queued.map(|queued| queued.keeps), key.map(|key| key.keeps), "{name}");
        assert!(queued.map(|queued| queued.since_ms) <= key.map(|key| key.since_ms), "{name} goes late");
    }
    assert_eq!(state.bytes, bytes);
    let queues = state.queues.iter();
    let queued = queues.flat_map(|(rule, keeps, queue)| {
        queue.iter().map(move |(since_ms, name)| (name.clone(), (rule, QueueKey { keeps, since_ms })))
    });
    let mut queued: Vec<_> = queued.collect();
    let channels = state.channels.iter();
    let placed = channels
        .filter_map(|(name, channel)| Some((name.clone(), (channel.rule.index(), channel.in_age_queue?))));
    let mut placed: Vec<_> = placed.collect();
    queued.sort();
    placed.sort();
    assert_eq!(queued, placed, "each channel is in the queue where it says that it is, and in no other");
}

fn small_parts(broker: &Arc<MemoryBroker>) -> MemoryExport {
    MemoryExport::with_limits(Arc::clone(broker), PartLimits { bytes: 3, items: 2 })
}

/// How much later the clock of the new process is: as if the machine had been started anew, in between or
/// long before.
const SHIFTS: [i64; 3] = [0, -1_000_000_000, 7_000_000];

/// The parts of an export, each with the time at which it was made.
type Parts = Vec<(i64, BrokerPart)>;

fn pass(export: &mut MemoryExport, now: i64) -> Parts {
    export.pass_at(|| now).map(|part| (now, part)).collect()
}

/// Imports a part as another process reads it at once.
fn import(broker: &MemoryBroker, part: &(i64, BrokerPart)) {
    import_shifted(broker, part, 0);
}

/// The same in a process whose clock is later.
fn import_shifted(broker: &MemoryBroker, (now, part): &(i64, BrokerPart), shift: i64) {
    let bytes = rmp_serde::to_vec_named(part).unwrap();
    let time = ImportTime { now_ms: now + shift, wall_ms: 0, part_age_ms: 0 };
    broker.import_at(time, rmp_serde::from_slice(&bytes).unwrap()).unwrap();
}

fn page_of(publications: usize) -> PageLimit {
    PageLimit { publications, bytes: usize::MAX }
}

#[test]
fn a_large_channel_is_exported_in_pieces_and_continues_where_the_first_pass_ended() {
    let old = Arc::new(keeping(10, 1_000_000));
    let tops: Vec<_> = (0..7).map(|now| publish(&old, now, "a")).collect();
    let mut export = small_parts(&old);
    let first = pass(&mut export, 7);
    let pieces: Vec<_> = first.iter().flat_map(|(_, part)| &part.channels).collect();
    assert_eq!(pieces.iter().map(|piece| piece.top).collect::<Vec<_>>(), [3, 6, 7]);
    publish(&old, 7, "a");
    let second = pass(&mut export, 7);
    let pieces: Vec<_> = second.iter().flat_map(|(_, part)| &part.channels).collect();
    assert_eq!((pieces.len(), offsets(&pieces[0].publications)), (1, vec![8]), "only what is new");
    assert_eq!(export.pass().count(), 0, "nothing has changed since");

    let new = keeping(10, 1_000_000);
    first.iter().chain(&second).for_each(|part| import(&new, part));
    let subscribed = subscribe(&new, 8, "a", Since::Position(tops[1]));
    assert_eq!((subscribed.recovered, offsets(&subscribed.missed)), (true, vec![3, 4, 5, 6, 7, 8]));
    assert_eq!(publish(&new, 8, "a"), Position { offset: 9, ..tops[0] }, "the numbering continues");
    check_invariants(&new);
}

#[test]
fn keys_are_known_after_the_import_with_their_results_and_times() {
    let old = Arc::new(keeping(10, 1_000_000));
    let with_key = |broker: &MemoryBroker, now, key: &str| {
        broker.publish_at(now, &name("a"), vec![publication(now, "1")], Some(key.parse().unwrap()))
    };
    let before: Vec<Published> = (0..5).map(|now| with_key(&old, now, &format!("k{now}"))).collect();
    let mut export = small_parts(&old);
    let mut parts = pass(&mut export, 5);
    // The first ones are forgotten between the passes.
    let late = with_key(&old, 300_001, "late");
    let again = with_key(&old, 300_001, "k0");
    parts.extend(pass(&mut export, 300_001));
    assert_eq!(parts.iter().flat_map(|(_, part)| &part.keys).count(), 7, "each use once");

    let new = keeping(10, 1_000_000);
    parts.iter().for_each(|part| import(&new, part));
    new.finish_import_at(300_001);
    assert_eq!(with_key(&new, 300_001, "late"), late);
    assert_eq!(with_key(&new, 300_001, "k4"), before[4]);
    assert_eq!(with_key(&new, 300_001, "k0"), again, "it was used again after its time");
    assert_eq!(with_key(&new, 300_001, "k1").position.offset, again.position.offset + 1, "its time was over");
}

#[test]
fn a_channel_with_subscribers_is_kept_until_they_come() {
    let config = || Config {
        namespaces: vec![Namespace { name: "live".to_owned(), retention: retention(0, 1000) }],
        retention: retention(5, 1000),
        ..Config::default()
    };
    let old = Arc::new(broker(config()).0);
    let mut tops = Vec::new();
    for channel in ["a", "live:a", "left"] {
        subscribe(&old, 0, channel, Since::Now);
        tops.push(publish(&old, 0, channel));
    }
    unsubscribe(&old, 0, "left");
    let new = broker(config()).0;
    pass(&mut small_parts(&old), 0).iter().for_each(|part| import(&new, part));
    assert_eq!(
        new.usage().history_bytes,
        old.usage().history_bytes,
        "a channel with subscribers costs no history"
    );
    // Long after that.
    for (channel, top) in ["a", "live:a"].into_iter().zip(&tops) {
        assert_eq!(subscribe(&new, 90_000, channel, Since::Now).top, *top, "{channel}");
    }
    new.finish_import_at(90_000);
    check_invariants(&new);
    assert_ne!(subscribe(&new, 90_000, "left", Since::Now).top.epoch, tops[2].epoch);

    // Without any that come, they are as if the last one had left at the end of the import.
    let new = broker(config()).0;
    pass(&mut small_parts(&old), 0).iter().for_each(|part| import(&new, part));
    new.finish_import_at(90_000);
    check_invariants(&new);
    assert!(subscribe(&new, 90_999, "a", Since::Position(tops[0])).recovered);
    assert_ne!(subscribe(&new, 90_999, "live:a", Since::Now).top.epoch, tops[1].epoch);
}

#[test]
fn a_channel_that_began_anew_between_the_passes_has_its_new_epoch() {
    let old = Arc::new(keeping(5, 1000));
    let (before, gone) = (publish(&old, 0, "a"), publish(&old, 0, "gone"));
    let mut export = small_parts(&old);
    let new = keeping(5, 1000);
    pass(&mut export, 0).iter().for_each(|part| import(&new, part));
    while old.drop_expired(&mut old.lock(), 1000, 10) {}
    let after = publish(&old, 1000, "a");
    assert_ne!(after.epoch, before.epoch);
    pass(&mut export, 1000).iter().for_each(|part| import(&new, part));
    new.finish_import_at(1000);
    check_invariants(&new);
    assert!(!subscribe(&new, 1000, "a", Since::Position(before)).recovered);
    assert_eq!(subscribe(&new, 1000, "a", Since::Now).top, after);
    // Also where the time to live is longer now.
    assert_ne!(subscribe(&new, 500, "gone", Since::Position(gone)).top.epoch, gone.epoch);
}

#[test]
fn the_time_of_a_channel_begins_when_its_last_subscriber_leaves_between_the_passes() {
    let old = Arc::new(keeping(5, 1000));
    let top = subscribe(&old, 0, "a", Since::Now).top;
    let mut export = small_parts(&old);
    let new = keeping(5, 1000);
    pass(&mut export, 0).iter().for_each(|part| import(&new, part));
    unsubscribe(&old, 100, "a");
    pass(&mut export, 500).iter().for_each(|part| import(&new, part));
    new.finish_import_at(900);
    check_invariants(&new);
    assert!(new.history_at(1099, &name("a"), Some(top), page_of(1)).recovered);
    assert!(!new.history_at(1100, &name("a"), Some(top), page_of(1)).recovered);
}

#[test]
fn a_broker_that_begins_anew_keeps_its_subscribers_and_no_epoch() {
    let config = || Config {
        namespaces: vec![Namespace { name: "live".to_owned(), retention: retention(0, 1000) }],
        retention: retention(5, 1000),
        ..Config::default()
    };
    let (broker, recorder) = broker(config());
    let subscribed = ["a", "live:a"];
    for channel in subscribed {
        subscribe(&broker, 0, channel, Since::Now);
    }
    let before: Vec<_> = ["a", "live:a", "b"].iter().map(|channel| publish(&broker, 0, channel)).collect();
    broker.renew_all_epochs();
    check_invariants(&broker);
    let told = recorder.0.lock().unwrap().split_off(2);
    let told: Vec<_> = told.iter().map(|(_, channel, top)| (channel.as_str(), top.offset)).collect();
    assert!(
        told.len() == 2 && told.contains(&("reset a", 0)) && told.contains(&("reset live:a", 0)),
        "{told:?}"
    );
    for (channel, before) in ["a", "live:a", "b"].iter().zip(&before) {
        assert!(!subscribe(&broker, 1, channel, Since::Position(*before)).recovered, "{channel}");
        broker.unsubscribe_at(1, &name(channel), 0, false);
        let after = publish(&broker, 1, channel);
        assert_ne!(after.epoch, before.epoch, "{channel}");
    }
    check_invariants(&broker);
    let delivered = recorder.0.lock().unwrap();
    assert_eq!(delivered.iter().filter(|(_, channel, _)| subscribed.contains(&channel.as_str())).count(), 4);
}

#[test]
fn a_part_that_contradicts_itself_changes_nothing() {
    let old = Arc::new(keeping(5, 1000));
    publish(&old, 0, "a");
    publish(&old, 0, "b");
    let mut part = MemoryExport::new(Arc::clone(&old)).pass().next().unwrap();
    part.channels[1].top += 1;
    let wrong = part.channels[1].name.clone();
    let new = keeping(5, 1000);
    assert_eq!(new.import(part, Duration::ZERO), Err(PartError::Offsets(wrong)));
    assert_eq!((new.usage().history_bytes, new.lock().channels.len()), (0, 0));
    publish(&new, 0, "a");
    new.clear();
    assert_eq!((new.usage().history_bytes, new.expire()), (0, None));
    check_invariants(&new);
}

/// Runs steps against a broker, and exports it meanwhile: the first pass begins before the step `first_pass`,
/// and goes on by a part with each step after that. Returns all positions that were seen, the parts, and the
/// time.
fn run(old: &Arc<MemoryBroker>, steps: &[Step], first_pass: usize) -> (Vec<(u8, Position)>, Parts, i64) {
    let (clock, mut seen, mut parts) = (Cell::new(0), Vec::new(), Vec::new());
    let mut stay = [0_usize; 4];
    let mut export = small_parts(old);
    let (before, after) = steps.split_at(first_pass.min(steps.len()));
    let mut step = |step: &Step| {
        clock.update(|now| now + 1);
        let now = clock.get();
        match *step {
            Step::Wait(ms) => clock.set(now + i64::from(ms)),
            Step::Publish { channel, count } => {
                let publications = (0..count).map(|_| publication(now, "1")).collect();
                let published = old.publish_at(now, &name(&channel.to_string()), publications, None);
                let top = published.position;
                let positions = top.offset - u64::from(count)..=top.offset;
                seen.extend(positions.map(|offset| (channel, Position { offset, ..top })));
            }
            Step::Subscribe { channel, stays, .. } => {
                seen.push((channel, subscribe(old, now, &channel.to_string(), Since::Now).top));
                if stays {
                    stay[usize::from(channel)] += 1;
                } else {
                    let is_last = stay[usize::from(channel)] == 0;
                    old.unsubscribe_at(now, &name(&channel.to_string()), 0, is_last);
                }
            }
            Step::Leave(channel) => {
                if let Some(left) = stay[usize::from(channel)].checked_sub(1) {
                    stay[usize::from(channel)] = left;
                    old.unsubscribe_at(now, &name(&channel.to_string()), 0, left == 0);
                }
            }
            Step::Expire(limit) => drop(old.drop_expired(&mut old.lock(), now, limit.into())),
        }
    };
    before.iter().for_each(&mut step);
    let mut first = export.pass_at(|| clock.get()).map(|part| (clock.get(), part));
    for one in after {
        parts.extend(first.next());
        step(one);
    }
    parts.extend(first);
    parts.extend(pass(&mut export, clock.get()));
    (seen, parts, clock.get())
}

/// Imports everything into a new broker, and has as many clients subscribe as the old one has.
fn take_over(old: &MemoryBroker, new: &MemoryBroker, parts: &[(i64, BrokerPart)], now: i64, shift: i64) {
    for part in parts {
        import_shifted(new, part, shift);
        check_invariants(new);
    }
    let state = old.lock();
    for (name, channel) in &state.channels {
        for _ in 0..channel.subscribers {
            let subscribed = subscribe(new, now + shift, name.as_str(), Since::Now);
            assert_eq!(subscribed.top, channel.log.top(), "{name}");
        }
    }
    drop(state);
    new.finish_import_at(now + shift);
    check_invariants(new);
}

fn arbitrary_parts() -> impl Strategy<Value = Vec<BrokerPart>> {
    let channel = (0_u8..3, 0_u64..3, 0_u64..12, 0_usize..8, -5_i64..3000, any::<bool>(), any::<bool>());
    // Ages, of which one may be too many, or the moments of an earlier build; and how many are kept.
    let times = (
        prop::option::weighted(0.7, prop_oneof![9 => Just(0_u64), 1 => Just(1)]),
        prop::option::of(0_u64..9),
    );
    let channel = (channel, times).prop_map(|(channel, (ages, kept))| {
        let (number, epoch, top, count, used_ms, in_use, is_right) = channel;
        let count = count.min(top as usize) as u64;
        let first = top + 1 - count + u64::from(!is_right);
        let publications = (first..first + count)
            .map(|offset| Arc::new(Publication { offset, ..publication(used_ms, "1") }))
            .collect();
        // Those of an odd number have no history.
        let name = name(&format!("{}:{number}", if number % 2 == 1 { "live" } else { "other" }));
        let ages_ms = (0..count + ages.unwrap_or_default()).map(|number| number * 7 % 5).collect();
        ChannelPart {
            name,
            epoch: Epoch(epoch),
            top,
            kept,
            used_age_ms: ages,
            used_ms: Some(used_ms),
            in_use,
            publications,
            ages_ms: if ages.is_some() { ages_ms } else { Vec::new() },
        }
    });
    let part = (prop::collection::vec(0_u8..3, 0..2), prop::collection::vec(channel, 0..4));
    let part = part.prop_map(|(gone, channels)| BrokerPart {
        gone: gone.iter().map(|number| name(&format!("other:{number}"))).collect(),
        channels,
        ..BrokerPart::default()
    });
    prop::collection::vec(part, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_new_broker_answers_each_position_as_the_old_one_would(
        steps in steps(),
        first_pass in 0_usize..120,
        later in 0_i64..1500,
        shift in prop::sample::select(SHIFTS.to_vec()),
    ) {
        let old = Arc::new(keeping(SIZE, TTL as u64));
        let (seen, parts, now) = run(&old, &steps, first_pass);
        let new = keeping(SIZE, TTL as u64);
        take_over(&old, &new, &parts, now, shift);
        for (channel, position) in seen {
            let channel = channel.to_string();
            let of_old = subscribe(&old, now + later, &channel, Since::Position(position));
            let of_new = subscribe(&new, now + later + shift, &channel, Since::Position(position));
            prop_assert_eq!(of_new.recovered, of_old.recovered, "{} {}", channel, position);
            prop_assert_eq!(&of_new.missed, &of_old.missed);
            prop_assert_eq!(of_new.top.offset, of_old.top.offset);
            prop_assert!(!of_old.recovered || of_new.top == of_old.top);
        }
        check_invariants(&old);
    }

    #[test]
    fn the_new_broker_has_at_most_its_bytes_and_all_that_the_old_one_kept(
        steps in steps(),
        first_pass in 0_usize..120,
        max_bytes in 300_usize..2500,
        shift in prop::sample::select(SHIFTS.to_vec()),
    ) {
        let config = || Config { retention: retention(SIZE, TTL as u64), max_bytes, ..Config::default() };
        let old = Arc::new(broker(config()).0);
        let (seen, parts, now) = run(&old, &steps, first_pass);
        let new = broker(config()).0;
        take_over(&old, &new, &parts, now, shift);
        prop_assert!(new.usage().history_bytes <= max_bytes, "{} bytes", new.usage().history_bytes);
        for (channel, position) in seen {
            let channel = name(&channel.to_string());
            let of_old = old.history_at(now, &channel, Some(position), page_of(100));
            let of_new = new.history_at(now + shift, &channel, Some(position), page_of(100));
            if of_old.recovered {
                prop_assert_eq!(of_new, of_old);
            }
        }
    }

    #[test]
    fn any_parts_are_taken_over_or_refused(parts in arbitrary_parts(), now in 0_i64..4000) {
        let namespaces = vec![Namespace { name: "live".to_owned(), retention: retention(0, 1000) }];
        let config = Config { namespaces, retention: retention(SIZE, 1000), max_bytes: 1500 };
        let (broker, _) = broker(config);
        for part in parts {
            let time = ImportTime { now_ms: now, wall_ms: now, part_age_ms: 5 };
            prop_assert_eq!(part.check().is_ok(), broker.import_at(time, part).is_ok());
            check_invariants(&broker);
        }
        broker.finish_import_at(now);
        check_invariants(&broker);
        for channel in ["other:0", "live:1", "other:2"] {
            publish(&broker, now, channel);
            subscribe(&broker, now, channel, Since::Now);
            unsubscribe(&broker, now, channel);
            check_invariants(&broker);
        }
        while broker.drop_expired(&mut broker.lock(), now + 10_000, 3) {}
        prop_assert_eq!((broker.usage().history_bytes, broker.lock().channels.len()), (0, 0));
    }
}
