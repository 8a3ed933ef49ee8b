//! Keys: nobody passes without one where there are any, save to ask whether the gateway lives.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;

use crate::app::App;
use crate::error::in_callers_words;
use crate::keys::{Denied, Principal};

/// Asked by load balancers and by people without a key; they tell nothing of models or users.
const OPEN: [&str; 5] = ["/", "/health", "/live", "/ready", "/version"];

/// Who asks; absent where no keys are configured.
#[derive(Clone, Debug)]
pub(crate) struct Asker(pub(crate) Arc<Principal>);

impl Asker {
    pub(crate) fn of(request: &Request) -> Option<Arc<Principal>> {
        request.extensions().get::<Self>().map(|asker| Arc::clone(&asker.0))
    }
}

/// Marks the request as its [`Asker`]'s.
///
/// # Errors
/// The answer to somebody who may not pass.
pub(crate) fn check(app: &App, request: &mut Request) -> Result<(), Box<Response>> {
    let path = request.uri().path();
    let keys = app.keys.load();
    if !keys.are_asked_for() || OPEN.contains(&path) {
        return Ok(());
    }
    let admin = path.starts_with("/admin/");
    let asker = keys.principal(request.headers()).and_then(|principal| match admin && !principal.admin {
        true => Err(Denied::NotAdmin(Arc::clone(&principal.name))),
        false => Ok(principal),
    });
    match asker {
        Ok(principal) => {
            request.extensions_mut().insert(Asker(principal));
            Ok(())
        }
        Err(denied) => {
            app.metrics.auth_failures.with_label_values(&[denied.as_str()]).inc();
            Err(Box::new(in_callers_words(request, denied.into())))
        }
    }
}
