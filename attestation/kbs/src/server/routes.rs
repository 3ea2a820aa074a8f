//! The routes, as a table: the router is made of it, and the test of the OpenAPI document walks it.

use super::error::ApiError;
use super::{Broker, attest, audit, auth, health, manifest, policy, reference, resource, whoami};
use crate::listen::Peer;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Router, http::Method};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

/// The description of this interface, OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("../../openapi.json");
const AUTH: &str = "/kbs/v0/auth";

/// One method of one path.
#[derive(Debug)]
pub struct Route {
    /// `GET`, `POST` or `DELETE`.
    pub method: Method,
    /// With parameters in braces, as OpenAPI has them too.
    pub path: &'static str,
    handler: MethodRouter<Arc<Broker>>,
}

fn get<H: Handler<T, Arc<Broker>>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { method: Method::GET, path, handler: routing::get(handler) }
}

fn post<H: Handler<T, Arc<Broker>>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { method: Method::POST, path, handler: routing::post(handler) }
}

fn delete<H: Handler<T, Arc<Broker>>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route { method: Method::DELETE, path, handler: routing::delete(handler) }
}

/// All of them.
pub fn routes() -> Vec<Route> {
    const RESOURCE: &str = "/kbs/v0/resource/{repository}/{type}/{tag}";
    vec![
        post(AUTH, auth::auth),
        post("/kbs/v0/attest", attest::attest),
        get(RESOURCE, resource::read),
        post(RESOURCE, resource::write),
        delete(RESOURCE, resource::delete),
        get("/kbs/v0/resource", resource::list),
        get("/kbs/v0/resource-policy", policy::get_resource),
        post("/kbs/v0/resource-policy", policy::set_resource),
        delete("/kbs/v0/resource-policy", policy::reset_resource),
        get("/kbs/v0/attestation-policy", policy::list_attestation),
        post("/kbs/v0/attestation-policy", policy::set_attestation),
        get("/kbs/v0/attestation-policy/{id}", policy::get_attestation),
        delete("/kbs/v0/attestation-policy/{id}", policy::reset_attestation),
        get("/kbs/v0/reference-value", reference::list),
        post("/kbs/v0/reference-value", reference::register),
        get("/kbs/v0/reference-value/{id}", reference::query),
        delete("/kbs/v0/reference-value/{id}", reference::delete),
        get("/kbs/v0/reference-manifest", manifest::list),
        get("/kbs/v0/reference-manifest/{name}", manifest::one),
        delete("/kbs/v0/reference-manifest/{name}", manifest::delete),
        get("/kbs/v0/whoami", whoami::whoami),
        get("/kbs/v0/audit", audit::list),
        get("/kbs/v0/audit/{id}", audit::one),
        get("/.well-known/jwks.json", health::jwks),
        get("/openapi.json", async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)),
        get("/healthz", health::healthz),
        get("/readyz", health::readyz),
        get("/metrics", health::metrics),
    ]
}

/// The interface.
pub fn router(broker: Arc<Broker>) -> Router {
    let mut router = Router::new();
    for Route { path, handler, .. } in routes() {
        let handler = if path == AUTH { handler.layer(middleware::from_fn_with_state(Arc::clone(&broker), before_auth)) } else { handler };
        router = router.route(path, handler);
    }
    router
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "InvalidRequestPath", "no such path"))
        .method_not_allowed_fallback(async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "not with this method"))
        .with_state(broker)
}

/// Before a session is opened: there is somebody who administers, and the address has not opened too many.
async fn before_auth(State(broker): State<Arc<Broker>>, request: Request, next: Next) -> Response {
    if broker.admins.is_empty() {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "NotReady", "nobody can administer this broker yet").into_response();
    }
    // Whoever calls the router without a connection is one peer.
    let address = request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    match broker.auth_rate.take(address, Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(wait) => {
            broker.metrics.rate_limited();
            let seconds = wait.as_secs().saturating_add(1);
            let error = ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "RateLimited",
                format!("too many sessions from this address: try again in {seconds} s"),
            );
            ([(header::RETRY_AFTER, HeaderValue::from(seconds))], error).into_response()
        }
    }
}
