//! How a session's tokens may leave the model early: by calibrated exits, by verified drafts, or not at all.

use super::cascade::Cascade;
use super::exact::Drafting;
use super::exits::Exits;
use super::model::Model;
use super::params::SessionParams;
use crate::error::Result;
use crate::gate::Gate;

/// What `params` ask for, on the threads of `gate`, which is empty.
///
/// # Errors
/// As [`Cascade::new`], and [`Error::InvalidValue`](crate::Error::InvalidValue) for an agreement that the heads have no
/// level for.
pub(super) fn ways(
    model: &Model,
    params: &SessionParams,
    gate: &mut Gate,
) -> Result<(Option<Cascade>, Option<Drafting>)> {
    let heads = model.heads();
    match params.exits {
        Exits::Off => Ok((None, None)),
        Exits::Exact => Ok((None, Drafting::new(model, heads, params, gate)?)),
        Exits::Calibrated => {
            let Some(heads) = heads else { return Ok((None, None)) };
            let Some(thresholds) = heads.thresholds(params.agreement)? else {
                tracing::info!(
                    agreement = params.agreement,
                    "the heads were not certified for this agreement: nothing exits"
                );
                return Ok((None, None));
            };
            Ok((Cascade::new(model, heads, &thresholds, params, gate)?, None))
        }
    }
}
