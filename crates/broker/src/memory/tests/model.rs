//! The memory broker against naive models of the history.

use super::*;

/// What a test does.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Wait(u16),
    Publish {
        channel: u8,
        count: u8,
    },
    /// Subscribes with the position that was seen so many positions ago, and leaves again or stays.
    Subscribe {
        channel: u8,
        since: u16,
        stays: bool,
    },
    Leave(u8),
    Expire(u8),
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1_u16..400).prop_map(Step::Wait),
        6 => (0_u8..4, 1_u8..4).prop_map(|(channel, count)| Step::Publish { channel, count }),
        5 => (0_u8..4, 0_u16..40, any::<bool>())
            .prop_map(|(channel, since, stays)| Step::Subscribe { channel, since, stays }),
        2 => (0_u8..4).prop_map(Step::Leave),
        1 => (1_u8..20).prop_map(Step::Expire),
    ];
    prop::collection::vec(step, 1..120)
}

/// A channel as the model knows it: all publications that were ever made, and nothing clever.
#[derive(Debug, Default)]
struct Model {
    /// The epoch that its present life has, as the broker has told; `None`: it is not alive.
    epoch: Option<Epoch>,
    /// Times of the publications of this life; their offsets are 1, 2, 3 and so on.
    times: Vec<i64>,
    subscribers: usize,
    used: i64,
}

pub(super) const SIZE: usize = 5;
pub(super) const TTL: i64 = 1000;

impl Model {
    /// Ends the life of a channel that has neither subscribers nor history.
    fn settle(&mut self, now: i64) {
        if self.subscribers == 0 && self.kept(now).is_empty() && self.used + TTL <= now {
            (self.epoch, self.times) = (None, Vec::new());
        }
    }

    /// Returns the offsets that are kept.
    fn kept(&self, now: i64) -> Vec<u64> {
        let all = (1..).zip(&self.times).filter(|(_, time)| **time + TTL > now);
        let all: Vec<u64> = all.map(|(offset, _)| offset).collect();
        all[all.len().saturating_sub(SIZE)..].to_vec()
    }

    /// Returns what is missed since a position, if all of it is kept.
    fn missed(&self, now: i64, since: Position) -> Option<Vec<u64>> {
        let top = self.times.len() as u64;
        if self.epoch != Some(since.epoch) || since.offset > top {
            return None;
        }
        let kept = self.kept(now);
        (since.offset + 1..=top).map(|offset| kept.contains(&offset).then_some(offset)).collect()
    }
}

/// Drops what goes first until there is room: of the channels that keep the least, the oldest.
fn make_room(models: &mut BTreeMap<u8, (usize, i64, Vec<i64>, usize)>, max_bytes: usize) {
    loop {
        let cost = |(subscribers, _, times, _): &(usize, i64, Vec<i64>, usize)| {
            times.len() * 101 + if *subscribers == 0 { 201 } else { 0 }
        };
        if models.values().map(cost).sum::<usize>() <= max_bytes {
            return;
        }
        let order =
            |(channel, (subscribers, used, times, top)): (&u8, &(usize, i64, Vec<i64>, usize))| match times
                .first()
            {
                Some(oldest) => Some((2, *oldest, *channel)),
                None if *subscribers == 0 => Some((usize::from(*top > 0), *used, *channel)),
                None => None,
            };
        let Some((_, _, first)) = models.iter().filter_map(order).min() else { return };
        let times = &mut models.get_mut(&first).unwrap().2;
        if times.is_empty() {
            models.remove(&first);
        } else {
            times.remove(0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_history_is_that_of_a_naive_model(steps in steps()) {
        let broker = keeping(SIZE, TTL as u64);
        let mut models: BTreeMap<u8, Model> = BTreeMap::new();
        let (mut now, mut seen) = (0_i64, Vec::new());
        for step in steps {
            match step {
                Step::Wait(ms) => now += i64::from(ms),
                Step::Publish { channel, count } => {
                    let model = models.entry(channel).or_default();
                    model.settle(now);
                    for _ in 0..count {
                        let position = publish(&broker, now, &channel.to_string());
                        model.times.push(now);
                        prop_assert_eq!(position.offset, model.times.len() as u64);
                        prop_assert_eq!(*model.epoch.get_or_insert(position.epoch), position.epoch);
                        seen.push((channel, position));
                    }
                    model.used = now;
                }
                Step::Subscribe { channel, since, stays } => {
                    let model = models.entry(channel).or_default();
                    model.settle(now);
                    let since = seen.len().checked_sub(usize::from(since) + 1).map(|at| seen[at]);
                    let asked = since.map_or(Since::Now, |(_, position)| Since::Position(position));
                    let expected = since
                        .filter(|(of, _)| *of == channel)
                        .and_then(|(_, position)| model.missed(now, position));
                    let subscribed = subscribe(&broker, now, &channel.to_string(), asked);
                    prop_assert_eq!(subscribed.recovered, expected.is_some(), "{:?} at {}", asked, now);
                    prop_assert_eq!(offsets(&subscribed.missed), expected.unwrap_or_default());
                    prop_assert_eq!(subscribed.top.offset, model.times.len() as u64);
                    prop_assert_eq!(*model.epoch.get_or_insert(subscribed.top.epoch), subscribed.top.epoch);
                    seen.push((channel, subscribed.top));
                    model.subscribers += 1;
                    if !stays {
                        unsubscribe(&broker, now, &channel.to_string());
                        model.subscribers -= 1;
                        model.used = now;
                    }
                }
                Step::Leave(channel) => {
                    let model = models.entry(channel).or_default();
                    if model.subscribers > 0 {
                        model.subscribers -= 1;
                        broker.unsubscribe_at(now, &name(&channel.to_string()), 0, model.subscribers == 0);
                        model.used = now;
                    }
                }
                Step::Expire(limit) => drop(broker.drop_expired(&mut broker.lock(), now, limit.into())),
            }
        }
        // Once everything has expired, only channels with subscribers are left.
        let all_left: usize = models.values().map(|model| usize::from(model.subscribers > 0)).sum();
        while broker.drop_expired(&mut broker.lock(), now + TTL, 3) {}
        prop_assert_eq!(broker.lock().channels.len(), all_left);
        prop_assert_eq!(broker.usage().history_bytes, 0);
    }

    #[test]
    fn what_there_is_no_room_for_goes_in_the_order_of_a_naive_model(
        steps in steps(),
        max_bytes in 500_usize..3000,
    ) {
        let long_ttl = 1_000_000;
        let config = Config { retention: retention(SIZE, long_ttl), max_bytes, ..Config::default() };
        let broker = broker(config).0;
        // For each channel: its subscribers, its last use, the times of what is kept, and its offset.
        let mut models: BTreeMap<u8, (usize, i64, Vec<i64>, usize)> = BTreeMap::new();
        let mut now = 0;
        for step in steps {
            now += 1;
            match step {
                Step::Wait(_) | Step::Expire(_) => continue,
                Step::Publish { channel, count } => {
                    for _ in 0..count {
                        publish(&broker, now, &channel.to_string());
                        let (_, used, times, top) = models.entry(channel).or_default();
                        times.push(now);
                        (*used, *top) = (now, *top + 1);
                        times.drain(..times.len().saturating_sub(SIZE));
                        make_room(&mut models, max_bytes);
                    }
                }
                Step::Subscribe { channel, stays, .. } => {
                    subscribe(&broker, now, &channel.to_string(), Since::Now);
                    models.entry(channel).or_default().0 += 1;
                    if !stays {
                        let (subscribers, used, ..) = models.get_mut(&channel).unwrap();
                        (*subscribers, *used) = (*subscribers - 1, now);
                        broker.unsubscribe_at(now, &name(&channel.to_string()), 0, *subscribers == 0);
                        make_room(&mut models, max_bytes);
                    }
                }
                Step::Leave(channel) => {
                    if let Some((subscribers @ 1.., used, ..)) = models.get_mut(&channel) {
                        (*subscribers, *used) = (*subscribers - 1, now);
                        broker.unsubscribe_at(now, &name(&channel.to_string()), 0, *subscribers == 0);
                        make_room(&mut models, max_bytes);
                    }
                }
            }
            let told = broker.channels_at(now, None, 100).into_iter();
            let told: Vec<_> = told.map(|info| (info.name, info.subscribers, info.kept, info.top.offset)).collect();
            let expected = models.iter().map(|(channel, (subscribers, _, times, top))| {
                (name(&channel.to_string()), *subscribers, times.len(), *top as u64)
            });
            prop_assert_eq!(told, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn channels_are_listed_by_name_in_pages(
        names in prop::collection::btree_set("[a-c]{1,3}", 0..30),
        limit in 1_usize..8,
    ) {
        let broker = keeping(10, 1000);
        names.iter().for_each(|name| _ = publish(&broker, 500, name));
        // Gone by then, and not dropped yet.
        publish(&broker, 0, "aaaa");
        let mut listed = Vec::new();
        loop {
            let after: Option<ChannelName> = listed.last().cloned();
            let page = broker.channels_at(1200, after.as_ref(), limit);
            prop_assert!(page.len() <= limit);
            prop_assert!(page.iter().all(|channel| channel.kept == 1));
            if page.is_empty() {
                break;
            }
            listed.extend(page.into_iter().map(|channel| channel.name));
        }
        prop_assert_eq!(listed, names.iter().map(|text| name(text)).collect::<Vec<_>>());
    }

    #[test]
    fn the_oldest_of_all_channels_goes_first(
        publications in prop::collection::vec((0_u8..5, 1_usize..300), 1..200),
        max_bytes in 1000_usize..6000,
    ) {
        let config = Config { retention: retention(1000, 1_000_000), max_bytes, ..Config::default() };
        let (broker, _) = broker(config);
        let mut all = Vec::new();
        for (now, (channel, size)) in (0..).zip(publications) {
            let data = format!("\"{}\"", "x".repeat(size));
            broker.publish_at(now, &name(&channel.to_string()), vec![publication(now, &data)], None);
            all.push((channel, now, data.len()));
            prop_assert!(broker.usage().history_bytes <= max_bytes, "{} bytes", broker.usage().history_bytes);
        }
        let mut kept = Vec::new();
        for (name, channel) in &broker.lock().channels {
            let number: u8 = name.as_str().parse().unwrap();
            kept.extend(channel.log.kept().map(|one| (one.time_ms, number)));
        }
        kept.sort_unstable();
        let (dropped, expected) = all.split_at(all.len() - kept.len());
        let expected: Vec<_> = expected.iter().map(|(channel, now, _)| (*now, *channel)).collect();
        prop_assert_eq!(kept, expected);
        // No more than necessary: the last one that was dropped, with its channel, would not fit.
        let most = dropped.last().map(|(_, _, size)| broker.usage().history_bytes + size + 100 + 201);
        prop_assert!(most.is_none_or(|most| most > max_bytes), "{:?} bytes, and {} allowed", most, max_bytes);
    }
}
