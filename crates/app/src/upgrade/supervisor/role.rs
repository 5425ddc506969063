//! The role of a process once it has handed over.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use lastcall_lifecycle::ServiceManager;
use rustix::process::{getpid, set_child_subreaper};

use super::link::Link;
use crate::{upgrade::descriptor::inherited_descriptor, variables};

/// The role of this process after a handover.
#[derive(Debug)]
pub(crate) enum Role {
    /// This process was started by something that may only know its PID: it stays, and supervises.
    Root(Option<LinkPair>),
    /// This process is watched by a service manager that follows a new PID when it is told (sd_notify(3),
    /// MAINPID=). It ends, unless the manager does not answer.
    FollowedByManager,
    /// Another process supervises this one, which ends.
    Supervised(Link),
}

impl Role {
    /// Returns the role of this process, which may take over from another one. To be called once, before
    /// there are threads.
    ///
    /// # Errors
    /// When the environment has something in place of the number of a descriptor.
    pub(crate) fn detect(takes_over: bool) -> anyhow::Result<Self> {
        if let Some(descriptor) = inherited_descriptor(variables::SUPERVISOR)? {
            return Ok(Self::Supervised(Link::new(descriptor)));
        }
        // Only an old process that is followed itself starts a new one without a supervisor.
        let followed = takes_over || ServiceManager::watches_this_process();
        Ok(if followed { Self::FollowedByManager } else { Self::Root(None) })
    }

    /// Has this process stay if the service manager did not take what it was told last: it would not follow
    /// the new one.
    pub(in crate::upgrade) async fn stay_in_doubt(&mut self, service_manager: &ServiceManager) {
        if matches!(self, Self::FollowedByManager) && !service_manager.is_told().await {
            *self = Self::Root(None);
        }
    }

    /// Returns the end of the link that a new process is to inherit, if there is to be a supervisor.
    ///
    /// # Errors
    /// When the system gives no sockets, or does not let this process become the parent of orphans.
    pub(in crate::upgrade) fn link(&mut self) -> io::Result<Option<&OwnedFd>> {
        match self {
            Self::Root(links) => {
                if links.is_none() {
                    *links = Some(LinkPair::prepare()?);
                }
                Ok(links.as_ref().map(|links| &links.serving))
            }
            Self::FollowedByManager => Ok(None),
            Self::Supervised(link) => Ok(Some(link.descriptor())),
        }
    }

    /// This process continues: drops what was made for the new process, and tells the supervisor, as the new
    /// process may have said that it serves.
    pub(in crate::upgrade) fn roll_back(&mut self) {
        match self {
            Self::Root(links) => *links = None,
            Self::FollowedByManager => {}
            Self::Supervised(link) => link.report(),
        }
    }

    /// Takes no more signals from the supervisor: the new process serves.
    pub(in crate::upgrade) async fn stop_receiving_signals(&mut self) {
        if let Self::Supervised(link) = self {
            link.stop().await;
        }
    }
}

/// The two ends of the link, as the process has them that becomes the supervisor.
#[derive(Debug)]
pub(crate) struct LinkPair {
    pub(super) own: UnixStream,
    pub(super) serving: OwnedFd,
}

impl LinkPair {
    fn prepare() -> io::Result<Self> {
        let (own, serving) = UnixStream::pair()?;
        set_child_subreaper(Some(getpid()))?;
        Ok(Self { own, serving: serving.into() })
    }
}
