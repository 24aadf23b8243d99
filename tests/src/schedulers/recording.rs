//! What an IPVS did with scripted arrivals, as `cargo xtask test ipvs` writes it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::{Endpoint, idle};

/// All cases of one run.
#[derive(Debug, Deserialize)]
pub struct Recording {
    /// The kernel, as `uname -r` says it.
    pub kernel: String,
    /// One virtual service each.
    pub cases: Vec<Case>,
}

/// A virtual service and what happened to it.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// IPVS's name of it.
    pub scheduler: String,
    /// The endpoints' at the beginning, in the order of IPVS's list.
    pub weights: Vec<u32>,
    /// The script's name.
    pub name: String,
    /// Words: `open@SOURCE`, `close:CONNECTION`, `reset:CONNECTION`, `rest`, `weight:ENDPOINT=WEIGHT`.
    pub script: String,
    /// The endpoint of each connection, in the order in which they were opened.
    pub assigned: Vec<usize>,
}

/// A connection that came, and what was so just before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// The last byte of the client's address.
    pub source: u8,
    /// What IPVS had counted for each endpoint.
    pub endpoints: Vec<Endpoint>,
    /// How often a weight had changed.
    pub changes: usize,
    /// The endpoint that IPVS gave it.
    pub assigned: usize,
}

impl Recording {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, or is no recording.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }
}

impl Case {
    /// For messages: scheduler, weights and script.
    pub fn title(&self) -> String {
        format!("{} {:?} {}", self.scheduler, self.weights, self.name)
    }

    /// Follows the script.
    ///
    /// # Errors
    /// A word of the script has no meaning, or there is not one endpoint for each connection.
    pub fn arrivals(&self) -> Result<Vec<Arrival>> {
        let mut endpoints = idle(&self.weights);
        let (mut arrivals, mut open, mut changes) = (Vec::new(), BTreeSet::new(), 0);
        for word in self.script.split_whitespace() {
            let (what, rest) = word.find(['@', ':']).map_or((word, ""), |at| (&word[..at], &word[at + 1..]));
            match what {
                "open" => {
                    let assigned = *self.assigned.get(arrivals.len()).context("a connection without an endpoint")?;
                    ensure!(assigned < endpoints.len(), "endpoint {assigned} is none");
                    open.insert(arrivals.len());
                    arrivals.push(Arrival { source: rest.parse()?, endpoints: endpoints.clone(), changes, assigned });
                    endpoints[assigned].active += 1;
                }
                "close" | "reset" => {
                    let number: usize = rest.parse()?;
                    ensure!(open.remove(&number), "{word}: connection {number} is not open");
                    let endpoint = &mut endpoints[self.assigned[number]];
                    endpoint.active -= 1;
                    endpoint.inactive += 1;
                }
                "rest" => endpoints.iter_mut().for_each(|endpoint| endpoint.inactive = 0),
                "weight" => {
                    let (endpoint, weight) = rest.split_once('=').with_context(|| word.to_owned())?;
                    endpoints.get_mut(endpoint.parse::<usize>()?).with_context(|| word.to_owned())?.weight =
                        weight.parse()?;
                    changes += 1;
                }
                _ => bail!("{word:?} is no word of a script"),
            }
        }
        ensure!(arrivals.len() == self.assigned.len(), "{} endpoints, not one for each", self.assigned.len());
        Ok(arrivals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_followed() {
        let mut case = Case {
            scheduler: "lc".to_owned(),
            weights: vec![1, 2],
            name: "test".to_owned(),
            script: "open@1 open@7 close:0 weight:1=5 open@1 reset:1 rest open@2".to_owned(),
            assigned: vec![0, 1, 0, 1],
        };
        let arrivals = case.arrivals().unwrap();
        let of = |weight, active, inactive| Endpoint { weight, active, inactive };
        assert_eq!(arrivals[0].endpoints, idle(&[1, 2]));
        assert_eq!(arrivals[1].source, 7);
        assert_eq!((arrivals[2].endpoints.as_slice(), arrivals[2].changes), (&[of(1, 0, 1), of(5, 1, 0)][..], 1));
        assert_eq!(arrivals[3].endpoints, [of(1, 1, 0), of(5, 0, 0)]);
        for (script, assigned) in [("open@1 close:0 close:0", 1), ("open@1", 2), ("closed:1", 0), ("weight:9=1", 0)] {
            (case.script, case.assigned) = (script.to_owned(), vec![0; assigned]);
            case.arrivals().unwrap_err();
        }
    }
}
