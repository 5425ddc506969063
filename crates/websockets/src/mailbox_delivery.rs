//! The way from the broker to the event loops.

use std::sync::Arc;

use lastcall_broker::{Delivery, ReceiverSet};
use lastcall_core::{ChannelName, Epoch, Publication};

use crate::{encoded::EncodedPublication, mailboxes::Mailboxes};

/// Passes the publications of a broker on to the mailboxes.
#[derive(Debug)]
pub(crate) struct MailboxDelivery(pub(crate) Arc<Mailboxes>);

impl Delivery for MailboxDelivery {
    fn deliver(
        &self,
        channel: &ChannelName,
        epoch: Epoch,
        publications: &[Arc<Publication>],
        receivers: ReceiverSet,
    ) {
        let encoded: Vec<_> = publications
            .iter()
            .map(|publication| Arc::new(EncodedPublication::new(epoch, Arc::clone(publication))))
            .collect();
        self.0.publish(channel, &encoded, receivers);
    }
}
