//! `gatepost explain`: the verdict for one source and one destination, and why.

use std::net::IpAddr;

use crate::command::check::hindrances;
use crate::config::Config;
use crate::control::{Client, ControlError};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output;
use crate::{runtime, wiring};

/// Asks the running agent; without one, reads the database and the kernel itself.
///
/// # Errors
/// `who` is unknown; neither an agent nor the database answers.
pub fn explain(
    config: &Config,
    who: &str,
    destination: IpAddr,
    json: bool,
) -> Result<Exit, CommandError> {
    let asked = Client::new(&config.control.socket).explain(who, &destination.to_string());
    let explanation = match asked {
        Err(ControlError::NoAgent { .. }) => {
            let explaining = async { wiring::prepare(config)?.explain(who, destination).await };
            let (mut explanation, link) = runtime::on_this_thread()?.block_on(explaining)?;
            let look = hindrances(config, Some(link.listen_port), &link.addresses);
            explanation.add_hindrances(&look.texts());
            explanation
        }
        answered => answered?,
    };
    if json {
        output::print_json(&explanation.details)?;
    } else {
        output::print_fitted(&format!("{}\n", explanation.text.trim_end()))?;
    }
    Ok(if explanation.allowed { Exit::Success } else { Exit::Differs })
}
