//! What runs inside of the virtual machine after the arrivals: a node that kube-proxy's ipvs mode has left, and a first sync of
//! Kubeferry's there. The tests' namespaces have no IPVS, and no size of connection tracking's table to set.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::step;

const MANIFESTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: worker-1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
";
/// Virtual servers: what kube-proxy made, then one that `ipvs.excludeCIDRs` has, and one of a packet mark.
const SERVERS: &str = "-A -t 10.96.0.10:80 -s rr
-a -t 10.96.0.10:80 -r 10.244.1.1:8080 -m
-A -u 10.96.0.10:53 -s wrr -p 10800
-A -t [fd00:10:96::10]:80 -s rr
-a -t [fd00:10:96::10]:80 -r [fd00:10:244:1::1]:8080 -m
-A --sctp-service 10.96.0.10:132 -s rr
-A -t 198.51.100.7:80 -s rr
-A -f 7 -s rr
";
const EXCLUDED: &str = "198.51.100.0/24";
const SETS: &str = "create KUBE-CLUSTER-IP hash:ip,port
add KUBE-CLUSTER-IP 10.96.0.10,6:80
create KUBE-6-CLUSTER-IP hash:ip,port family inet6
create KUBE-IPVS-IPS hash:ip
create mine hash:ip
";
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Put a first sync to what kube-proxy's ipvs mode left (inside of a virtual machine)
#[derive(clap::Args)]
pub struct Args {
    kubeferry: PathBuf,
}

/// Makes the leftovers, syncs once, and looks.
pub fn run(args: Args) -> anyhow::Result<()> {
    let ip = "link add eth0 type dummy\naddr add 192.0.2.1/24 dev eth0\nlink set eth0 up\nlink add kube-ipvs0 type dummy\n\
              addr add 10.96.0.10/32 dev kube-ipvs0\naddr add fd00:10:96::10/128 dev kube-ipvs0\n";
    step::feed(Command::new("ip").args(["-batch", "-"]), ip)?;
    step::feed(Command::new("ipvsadm").arg("--restore"), SERVERS)?;
    step::feed(Command::new("ipset").arg("restore"), SETS)?;
    for (file, value) in [(HASH_SIZE, "1024"), (LIMIT, "4096")] {
        fs::write(file, value).context(file)?;
    }
    ensure!(servers()?.len() == 6, "IPVS has {:?}", servers()?);

    let folder = PathBuf::from("/tmp/manifests");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("cluster.yaml"), MANIFESTS)?;
    let mut once = Command::new(&args.kubeferry);
    once.args(["run", "--once", "--node-name", "worker-1", "--cluster-cidr", "10.244.0.0/16"]);
    once.args(["--ipvs-exclude-cidrs", EXCLUDED, "--manifests"]).arg(&folder).env("NO_COLOR", "1");
    let output = once.output().context("cannot start kubeferry")?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "kubeferry run: {log}");

    let left: BTreeSet<String> = servers()?;
    let wanted: BTreeSet<String> = ["FWM  00000007", "TCP  C6336407:0050"].map(str::to_owned).into();
    ensure!(left == wanted, "IPVS has {left:?} left, not {wanted:?}; the log:\n{log}");
    let links = step::output(Command::new("ip").args(["-o", "link"]))?;
    ensure!(!links.contains("kube-ipvs0"), "kube-ipvs0 is left:\n{links}\nthe log:\n{log}");
    let sets = step::output(Command::new("ipset").args(["list", "-name"]))?;
    ensure!(sets.trim() == "mine", "these sets are left: {sets}\nthe log:\n{log}");
    for told in ["4 virtual servers of IPVS", "device kube-ipvs0", "3 ipsets", "nf_conntrack's hashsize from 1024"] {
        ensure!(log.contains(told), "{told:?} is not in the log:\n{log}");
    }
    // As many as two CPUs have by default, and a quarter of it.
    for (file, value) in [(LIMIT, "131072"), (HASH_SIZE, "32768")] {
        let found = fs::read_to_string(file).context(file)?;
        ensure!(found.trim() == value, "{file} is {found}, not {value}; the log:\n{log}");
    }
    let tables = step::output(Command::new("nft").args(["list", "tables"]))?;
    ensure!(tables.contains("inet kubeferry"), "there is no table of ours: {tables}");
    step::note("virtual servers, kube-ipvs0 and ipsets are gone, what is not kube-proxy's stayed; hashsize is set");
    Ok(())
}

/// Lines of the kernel's list that begin a virtual server: `TCP  0A60000A:0050`, `TCP  [fd00:…]:0050`, `FWM  00000007`.
fn servers() -> anyhow::Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/net/ip_vs").context("/proc/net/ip_vs")?;
    Ok(begun(&table))
}

fn begun(table: &str) -> BTreeSet<String> {
    let is_server = |line: &&str| ["TCP ", "UDP ", "SCTP", "FWM "].iter().any(|kind| line.starts_with(kind));
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        format!("{:<5}{}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
    };
    table.lines().filter(is_server).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_told_from_their_endpoints() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A60000A:0050 rr  \n  -> 0AF40101:1F90      Masq    1      0          0         \n\
            FWM  00000007 rr \n";
        let wanted = ["FWM  00000007", "TCP  0A60000A:0050"].map(str::to_owned);
        assert_eq!(begun(table), wanted.into());
    }
}
