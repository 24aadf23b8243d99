//! Which value is in force, and where it comes from. Beside a file only flags that count there are left, see
//! [`precedence`](super::precedence); they win.

use std::time::Duration;

use crate::args::{CommonArgs, DatapathArgs, LogArgs, ServeArgs, SourceArgs};
use crate::config::{Problem, ProxyConfig, go_duration_text};

/// Everything that settings are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub common: &'a CommonArgs,
    pub serve: &'a ServeArgs,
    pub config: &'a ProxyConfig,
    /// Whether there is a configuration file: without a mode in it, kube-proxy's default mode is meant.
    pub has_file: bool,
    pub host_name: &'a str,
}

/// A value with the flag or field that it comes from, for messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Given<T> {
    pub what: String,
    pub value: T,
}

impl Given<String> {
    pub fn problem(&self, why: impl Into<String>) -> Problem {
        Problem { what: self.what.clone(), value: format!("{:?}", self.value), why: why.into() }
    }
}

impl Given<Duration> {
    pub fn problem(&self, why: String) -> Problem {
        Problem { what: self.what.clone(), value: text_of(self.value), why }
    }
}

/// A duration as kube-proxy writes it.
pub(super) fn text_of(duration: Duration) -> String {
    jiff::SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), go_duration_text)
}

impl<'a> Inputs<'a> {
    pub fn source(&self) -> &'a SourceArgs {
        &self.common.source
    }

    pub fn datapath(&self) -> &'a DatapathArgs {
        &self.common.datapath
    }

    pub fn log(&self) -> &'a LogArgs {
        &self.common.log
    }

    /// A text; an empty flag counts as given, an empty field does not.
    pub fn text(&self, flag: Option<&String>, name: &str, path: &str) -> Option<Given<String>> {
        let from_flag = flag.map(|value| Given { what: name.to_owned(), value: value.clone() });
        from_flag.or_else(|| {
            self.config.text(path).map(|value| Given { what: self.config.origin(path), value: value.to_owned() })
        })
    }

    /// A list; an empty flag counts as given, an empty field does not.
    pub fn texts(&self, flag: Option<&Vec<String>>, name: &str, path: &str) -> Option<Given<Vec<String>>> {
        let from_flag = flag.map(|value| Given { what: name.to_owned(), value: value.clone() });
        from_flag.or_else(|| {
            self.config.texts(path).map(|value| Given { what: self.config.origin(path), value: value.to_vec() })
        })
    }

    /// A switch that is off unless given.
    pub fn switch(&self, flag: Option<bool>, path: &str) -> bool {
        flag.or_else(|| self.config.bool(path)).unwrap_or(false)
    }

    /// A duration of the configuration.
    pub fn period(&self, path: &str) -> Option<Given<Duration>> {
        let value = Duration::try_from(self.config.duration(path)?).ok()?;
        Some(Given { what: self.config.origin(path), value })
    }
}
