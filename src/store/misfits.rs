//! Tables that differ from what gateways read.

use super::connect::single;
use super::{ConnectOptions, StoreError};

/// How the tables differ from what gateways read: missing columns and rights, and other types, of which some can be
/// read all the same.
///
/// # Errors
/// Any [`StoreError`] of the connection or of the role's rights.
pub async fn misfits(options: &ConnectOptions) -> Result<Vec<String>, StoreError> {
    const DOING: &str = "compare the tables with what gateways read";
    let target = options.target()?;
    let row = single(&target).await?.query_typed_one("select gatepost.misfits()", &[]).await;
    Ok(row.map_err(|error| StoreError::of(&target.place, DOING, error))?.get(0))
}
