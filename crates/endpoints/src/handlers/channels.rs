//! `GET /api/channels`: the channels, and what is kept of them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use lastcall_core::{ChannelName, Position};
use lastcall_websockets::{ChannelInfo, Since};
use serde::{Deserialize, Serialize};

use super::{channel_query::since, history_body::history_body};
use crate::{
    auth::api_caller::ApiCaller,
    error::{ApiError, ErrorCode},
    service::{self, ChannelPage, channel_name},
    state::AppState,
};

/// Publications of a page of the history, if the caller names no number.
const DEFAULT_LIMIT: usize = 100;

/// Most publications of a page of the history, and most channels of a page of the list.
const MAX_LIMIT: usize = 1000;

/// Channels, by name.
#[derive(Serialize)]
pub(crate) struct ChannelList {
    channels: Vec<ChannelState>,
    /// True if there are others after these.
    more: bool,
}

/// The state of a channel on this node.
#[derive(Serialize)]
pub(crate) struct ChannelState {
    channel: ChannelName,
    /// Subscribers.
    clients: usize,
    /// The position of the last publication.
    id: Position,
    /// Publications that are kept.
    history: usize,
}

impl From<ChannelInfo> for ChannelState {
    fn from(info: ChannelInfo) -> Self {
        let ChannelInfo { name, subscribers, top, kept } = info;
        Self { channel: name, clients: subscribers, id: top, history: kept }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryQuery {
    #[serde(default)]
    since: String,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
}

pub(crate) async fn list(
    State(state): State<Arc<AppState>>,
    _: ApiCaller,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<ChannelList>, ApiError> {
    let Query(ListQuery { after, limit: asked }) = query.map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("The query may have `after` and `limit`: {error}."))
    })?;
    let after = after.map(|name| channel_name(Some(&name))).transpose()?;
    let limit = limit(asked, MAX_LIMIT)?;
    let ChannelPage { channels, more } = service::channels(&state.manager, after.as_ref(), limit);
    Ok(Json(ChannelList { channels: channels.into_iter().map(ChannelState::from).collect(), more }))
}

/// Returns how many entries a page has: as many as the caller asked for, or `usual`.
fn limit(asked: Option<usize>, usual: usize) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(usual);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let what = format!("`limit` must be a number from 1 to {MAX_LIMIT}, not {limit}.");
        return Err(ApiError::new(ErrorCode::BadRequest, what));
    }
    Ok(limit)
}

pub(crate) async fn show(
    State(state): State<Arc<AppState>>,
    _: ApiCaller,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ChannelState>, ApiError> {
    let name = channel_of(name)?;
    let info = service::channel(&state.manager, &name)?;
    Ok(Json(info.into()))
}

/// Returns the channel that a path names.
fn channel_of(name: Result<Path<String>, PathRejection>) -> Result<ChannelName, ApiError> {
    let Path(name) = name.map_err(|error| {
        ApiError::new(ErrorCode::BadChannel, format!("The path names no channel: {}.", error.body_text()))
    })?;
    channel_name(Some(&name))
}

pub(crate) async fn history(
    State(state): State<Arc<AppState>>,
    _: ApiCaller,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let channel = channel_of(name)?;
    let Query(HistoryQuery { since: id, limit: asked }) = query.map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("The query may have `since` and `limit`: {error}."))
    })?;
    let limit = limit(asked, DEFAULT_LIMIT)?;
    let since = match since(&id) {
        Since::Now => None,
        Since::Position(position) => Some(position),
        // No position of this channel, as one of another epoch.
        Since::Invalid => Some(Position::default()),
    };
    let page = service::history(&state.manager, &channel, since, limit).await?;
    Ok(([(CONTENT_TYPE, "application/json")], history_body(channel, page)).into_response())
}
