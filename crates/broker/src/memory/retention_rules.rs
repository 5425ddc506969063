//! The rule of retention that a channel follows.

use std::collections::HashMap;

use lastcall_core::{ChannelName, Namespace, Retention};

/// The number of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuleId(u32);

impl RuleId {
    /// Returns the number as an index.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The rules for all channels. The first one is for channels without a rule of their own.
#[derive(Debug)]
pub(crate) struct RetentionRules {
    retentions: Vec<Retention>,
    by_namespace: HashMap<String, RuleId>,
}

impl RetentionRules {
    pub(crate) fn new(default: Retention, namespaces: Vec<Namespace>) -> Self {
        let mut retentions = vec![default];
        let mut by_namespace = HashMap::new();
        for (number, namespace) in (1..).zip(namespaces) {
            retentions.push(namespace.retention);
            by_namespace.insert(namespace.name, RuleId(number));
        }
        Self { retentions, by_namespace }
    }

    /// Returns how many rules there are.
    pub(crate) fn len(&self) -> usize {
        self.retentions.len()
    }

    /// Returns the rule of a channel.
    pub(crate) fn find(&self, channel: &ChannelName) -> RuleId {
        let rule = channel.namespace().and_then(|namespace| self.by_namespace.get(namespace));
        rule.copied().unwrap_or(RuleId(0))
    }

    /// Returns what a rule says.
    pub(crate) fn retention(&self, rule: RuleId) -> Retention {
        self.retentions[rule.index()]
    }

    /// Returns the times to live of all rules, in their order, in milliseconds.
    pub(crate) fn ttls_ms(&self) -> impl Iterator<Item = i64> {
        self.retentions.iter().map(|retention| ttl_ms(*retention))
    }
}

/// Returns how long a publication is kept, in milliseconds.
pub(crate) fn ttl_ms(retention: Retention) -> i64 {
    i64::try_from(retention.ttl.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_channel_follows_the_rule_of_its_namespace_or_the_default() {
        let namespace = |name: &str, size| Namespace {
            name: name.to_owned(),
            retention: Retention { size, ttl: Duration::from_secs(1) },
        };
        let rules =
            RetentionRules::new(Retention::default(), vec![namespace("chat", 7), namespace("chat2", 8)]);
        let size = |name: &str| rules.retention(rules.find(&name.parse().unwrap())).size;
        assert_eq!(size("chat:room"), 7);
        assert_eq!(size("chat2:room:1"), 8);
        for name in ["chat", "chatter:room", "Chat:room", "x:chat:room", "broadcast"] {
            assert_eq!(size(name), 100, "{name}");
        }
    }
}
