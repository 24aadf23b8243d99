//! What kube-proxy's command lines may have that ours otherwise would not: underscores in the names of flags, lists that are
//! given in several flags, and values of `--version` and `--help`.

use std::ffi::OsString;

use crate::config::go_bool;

/// Flags whose values add up when they are repeated; of all others the last counts.
const LISTS: [&str; 4] = ["feature-gates", "ipvs-exclude-cidrs", "nodeport-addresses", "vmodule"];

/// Flags that end the program, so that clap takes no value for them.
const ENDING: [&str; 2] = ["help", "version"];

/// The same command line with dashes, with each list in one flag, and with `--help` and `--version` there or not.
pub(super) fn normalized(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut normal: Vec<OsString> = Vec::with_capacity(arguments.len());
    let mut lists: [Option<usize>; LISTS.len()] = [None; LISTS.len()];
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let flag = argument.to_str().and_then(|text| text.strip_prefix("--")).filter(|flag| !flag.is_empty());
        let Some(flag) = flag else {
            let end = argument == "--";
            normal.push(argument);
            if end {
                normal.extend(arguments);
                break;
            }
            continue;
        };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let name = name.replace('_', "-");
        // `raw` is another form of kube-proxy's version: ours has one.
        let on = value
            .as_deref()
            .and_then(|text| if text == "raw" { (name == "version").then_some(true) } else { go_bool(text) });
        if let Some(on) = on.filter(|_| ENDING.contains(&name.as_str())) {
            let flag = OsString::from(format!("--{name}"));
            normal.retain(|other| *other != flag);
            normal.extend(on.then_some(flag));
            continue;
        }
        let Some(list) = LISTS.iter().position(|list| *list == name) else {
            normal.push(value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")).into());
            continue;
        };
        let Some(value) = value.map(OsString::from).or_else(|| arguments.next()) else {
            normal.push(format!("--{name}").into());
            continue;
        };
        match lists[list] {
            Some(place) => {
                normal[place].push(",");
                normal[place].push(value);
            }
            None => {
                lists[list] = Some(normal.len());
                let mut whole = OsString::from(format!("--{name}="));
                whole.push(value);
                normal.push(whole);
            }
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(line: &str) -> String {
        let normal = normalized(line.split(' ').map(OsString::from).collect());
        normal.iter().map(|text| text.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_get_dashes_and_lists_add_up() {
        for (given, wanted) in [
            ("k run --cluster_cidr=a_b --node_name n_1 -v=2", "k run --cluster-cidr=a_b --node-name n_1 -v=2"),
            ("k --nodeport-addresses=a --once --nodeport_addresses b,c", "k --nodeport-addresses=a,b,c --once"),
            ("k --feature-gates A=true --feature-gates=B=false", "k --feature-gates=A=true,B=false"),
            ("k --vmodule", "k --vmodule"),
            ("k --cluster-cidr=a --cluster-cidr=b", "k --cluster-cidr=a --cluster-cidr=b"),
            ("k -- --a_b", "k -- --a_b"),
            ("k run --version=true", "k run --version"),
            ("k --version=raw --help=T", "k --version --help"),
            ("k run --version --help=0 --version=False --once", "k run --once"),
            ("k --version=v1.36.0 --help=raw", "k --version=v1.36.0 --help=raw"),
        ] {
            assert_eq!(normal(given), wanted);
        }
    }
}
