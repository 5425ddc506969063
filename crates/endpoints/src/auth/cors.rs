//! Lets pages of other origins publish and read events where `allowed_origins` names them: browsers ask
//! beforehand what such a page may send, and keep the response from it unless the server agrees (CORS: Fetch
//! Standard, section 3.2).

use std::time::Duration;

use axum::http::{
    HeaderValue, Method,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use lastcall_core::AllowedOrigins;
use tower_http::cors::{AllowCredentials, AllowOrigin, CorsLayer};

use crate::{
    auth::origin,
    fields::{IDEMPOTENCY_KEY, LAST_EVENT_ID},
};

/// The time for which a browser need not ask again. Chromium keeps it for two hours at most.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Returns the layer for what may be published; `None` if pages of no other origin may. The API knows keys,
/// and no credentials that a browser adds by itself.
pub(crate) fn publish(allowed: &AllowedOrigins) -> Option<CorsLayer> {
    let layer = layer(allowed)?;
    Some(layer.allow_methods([Method::POST]).allow_headers([AUTHORIZATION, CONTENT_TYPE, IDEMPOTENCY_KEY]))
}

/// Returns the layer for server-sent events; `None` if pages of no other origin may have them. Credentials,
/// such as a cookie, are for a proxy that authenticates clients; origins that are listed by name may send
/// them.
pub(crate) fn events(allowed: &AllowedOrigins) -> Option<CorsLayer> {
    let credentials = match allowed {
        AllowedOrigins::SameHost | AllowedOrigins::Any => AllowCredentials::from(false),
        AllowedOrigins::List(_) => AllowCredentials::predicate(is_listed(allowed)),
    };
    let layer = layer(allowed)?.allow_credentials(credentials);
    Some(layer.allow_methods([Method::GET]).allow_headers([AUTHORIZATION, CACHE_CONTROL, LAST_EVENT_ID]))
}

/// Returns the lines with which a page of this origin may read a response for server-sent events that no
/// route has made; none if it may not.
pub(crate) fn lines_for_events(allowed: &AllowedOrigins, origin: &str) -> String {
    match allowed {
        AllowedOrigins::SameHost => String::new(),
        AllowedOrigins::Any => "access-control-allow-origin: *\r\n".to_owned(),
        AllowedOrigins::List(_) if allowed.include(origin, None) => format!(
            "access-control-allow-origin: {origin}\r\naccess-control-allow-credentials: true\r\nvary: origin\r\n"
        ),
        AllowedOrigins::List(_) => "vary: origin\r\n".to_owned(),
    }
}

fn layer(allowed: &AllowedOrigins) -> Option<CorsLayer> {
    let origin = match allowed {
        AllowedOrigins::SameHost => return None,
        AllowedOrigins::Any => AllowOrigin::any(),
        AllowedOrigins::List(_) => AllowOrigin::predicate(is_listed(allowed)),
    };
    Some(CorsLayer::new().allow_origin(origin).max_age(MAX_AGE))
}

fn is_listed(
    allowed: &AllowedOrigins,
) -> impl Fn(&HeaderValue, &Parts) -> bool + Clone + Send + Sync + 'static {
    let allowed = allowed.clone();
    // Where a request goes to does not matter to a list.
    move |origin, _| allowed.include(origin::text(origin), None)
}
