//! The datapath's tables.

use super::super::load::Measured;
use super::super::report::median;
use super::uplink::Hook;
use super::{Figures, Kind, Variant};

/// A figure of a round, and whether more of it is better.
type Figure = fn(&Measured) -> f64;

const CONNECTIONS: Figure = |m| m.opened.connections;
const CONNECT: Figure = |m| m.opened.connect.median;
const CONNECT_P99: Figure = |m| m.opened.connect.p99;
const REQUEST: Figure = |m| m.request.median;
const REQUEST_P99: Figure = |m| m.request.p99;
const STREAM: Figure = |m| m.stream;

impl Variant {
    fn name(&self) -> String {
        let name = match self.kind {
            Kind::Nothing => "nothing at all",
            Kind::Tracking => "connection tracking alone",
            Kind::Nftables => "nftables",
            Kind::NftablesConnections => "nftables, connections counted",
            Kind::NftablesFull => "nftables, all counted",
            Kind::Packets => "eBPF, packets",
            Kind::PacketsFull => "eBPF, packets, all counted",
            Kind::Sockets => "eBPF, sockets",
        };
        self.services.map_or_else(|| name.to_owned(), |services| format!("{name}, {services} services"))
    }

    fn median(&self, figure: Figure) -> f64 {
        median(&self.rounds.iter().map(figure).collect::<Vec<_>>())
    }

    /// The median over rounds of this variant beside another.
    fn beside(&self, other: &Self, figure: Figure) -> f64 {
        median(
            &self.rounds.iter().zip(&other.rounds).map(|(one, other)| figure(one) / figure(other)).collect::<Vec<_>>(),
        )
    }
}

/// What one round of a variant has brought, in a line.
pub fn line(variant: &Variant, m: &Measured) -> String {
    format!(
        "{:<32} {:>6.0} connections/s, connect {:.1} µs, request {:.1} µs, stream {:.1} Gbit/s",
        variant.name(),
        m.opened.connections,
        m.opened.connect.median * 1e6,
        m.request.median * 1e6,
        m.stream / 1e9
    )
}

/// Prints the tables in Markdown.
pub fn print(figures: &Figures) {
    println!(
        "| a pod to pods elsewhere | connections/s | connect and request | p99 | request | p99 | one stream |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for variant in &figures.variants {
        let micros = |figure| variant.median(figure) * 1e6;
        println!(
            "| {} | {:.0} | {:.1} µs | {:.1} µs | {:.1} µs | {:.1} µs | {:.1} Gbit/s |",
            variant.name(),
            variant.median(CONNECTIONS),
            micros(CONNECT),
            micros(CONNECT_P99),
            micros(REQUEST),
            micros(REQUEST_P99),
            variant.median(STREAM) / 1e9
        );
    }
    println!(
        "\n| ratios | connections/s | connect and request | request | one stream |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for (one, other) in pairs(&figures.variants) {
        let ratios = [CONNECTIONS, CONNECT, REQUEST, STREAM].map(|figure| format!("{:.3}", one.beside(other, figure)));
        println!("| {} : {} | {} |", one.name(), other.name(), ratios.join(" | "));
    }
    println!("\n| outside to a node port, and on to another node | packets/s | of nftables |\n| --- | ---: | ---: |");
    let nftables = figures.uplink.iter().find(|rate| rate.hook == Hook::Nftables);
    for rate in &figures.uplink {
        let ratio = nftables.map_or(f64::NAN, |nftables| {
            median(&rate.rounds.iter().zip(&nftables.rounds).map(|(one, other)| one / other).collect::<Vec<_>>())
        });
        println!("| {} | {:.0} | {ratio:.3} |", rate.hook.name(), median(&rate.rounds));
    }
    println!("\n| program, a packet | ns | one packet at a time |\n| --- | ---: | ---: |");
    for cost in &figures.programs {
        let nanos = |ns: Option<f64>| ns.map_or_else(|| "–".to_owned(), |ns| format!("{ns:.0}"));
        println!("| {} | {} | {} |", cost.what, nanos(cost.repeated), nanos(cost.single));
    }
    println!();
}

/// What is set beside what: everything beside nothing at all, nftables beside the tracking that it needs, eBPF beside
/// nftables, and many services beside few.
fn pairs(variants: &[Variant]) -> Vec<(&Variant, &Variant)> {
    let find = |kind: Kind, services: Option<usize>| {
        variants.iter().find(move |variant| variant.kind == kind && variant.services == services)
    };
    let is_ebpf = |variant: &&Variant| matches!(variant.kind, Kind::Packets | Kind::Sockets);
    let mut pairs: Vec<(&Variant, Option<&Variant>)> = Vec::new();
    let all = || variants.iter();
    pairs.extend(all().filter(|v| v.kind != Kind::Nothing).map(|v| (v, find(Kind::Nothing, None))));
    pairs.extend(all().filter(|v| v.kind == Kind::Nftables).map(|v| (v, find(Kind::Tracking, None))));
    let counts = |v: &&Variant| matches!(v.kind, Kind::NftablesConnections | Kind::NftablesFull);
    pairs.extend(all().filter(counts).map(|v| (v, find(Kind::Nftables, v.services))));
    pairs.extend(all().filter(|v| v.kind == Kind::PacketsFull).map(|v| (v, find(Kind::Packets, v.services))));
    pairs.extend(all().filter(is_ebpf).map(|v| (v, find(Kind::Nftables, v.services))));
    let fewer = |many: &Variant| all().find(|few| few.kind == many.kind && few.services < many.services);
    pairs.extend(all().map(|many| (many, fewer(many))));
    pairs.into_iter().filter_map(|(one, other)| Some((one, other?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::variants;
    use super::*;
    use crate::bench::load::{Latency, Opened};

    #[test]
    fn ratios_are_taken_within_rounds() {
        let round = |connections| {
            let latency = Latency { median: 1.0, p99: 2.0 };
            Measured { opened: Opened { connections, connect: latency }, request: latency, stream: 1.0 }
        };
        let mut all = variants(1000);
        all[0].rounds = [2.0, 9.0, 6.0].map(round).into();
        all[1].rounds = [1.0, 9.0, 3.0].map(round).into();
        assert_eq!(all[1].beside(&all[0], CONNECTIONS), 0.5);
        // Ten beside nothing, two beside tracking, three that count beside the same that does not, four beside nftables,
        // three beside fewer services.
        assert_eq!(pairs(&all).len(), 10 + 2 + 3 + 4 + 3);
    }
}
