//! Lets pages of other origins publish where `allowed_origins` names them: browsers ask beforehand what such a
//! page may send, and keep the response from it unless the server agrees (CORS: Fetch Standard, section 3.2).

use std::time::Duration;

use axum::http::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{auth::origin::Allowed, handlers::publish::IDEMPOTENCY_KEY, target::Target};

/// How long a browser need not ask again. Chromium keeps it for two hours at most.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Returns the layer for what may be published; `None` if pages of no other origin may.
pub(crate) fn layer(allowed: &Allowed) -> Option<CorsLayer> {
    let origin = match allowed {
        Allowed::SameHost => return None,
        Allowed::Any => AllowOrigin::any(),
        Allowed::List(_) => {
            let allowed = allowed.clone();
            // Where a request goes to does not matter to a list.
            AllowOrigin::predicate(move |origin, _| allowed.includes(origin, &Target(None)))
        }
    };
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, IDEMPOTENCY_KEY])
        .max_age(MAX_AGE);
    Some(layer)
}
