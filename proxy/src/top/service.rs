//! One Service on the screen: its ports, and whom each goes to.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use super::draw::{color, right};
use super::fit::{Column, at_most, columns, cut, width, wrap};
use super::lately::Spread;
use super::view::View;
use super::words::{bar, counted, percent, port_in, promised, state};
use crate::facts::{EndpointFacts, PortFacts, ServiceFacts};

const COLUMNS: usize = 10;
const HEADS: [&str; COLUMNS] =
    ["ENDPOINT", "NODE", "STATE", "WEIGHT", "SHARE", "LATELY", "OVERALL", "PROMISED", "CONNS", "ACTIVE"];
const NODE: usize = 1;
const SHARE: usize = 4;
/// A line about a port goes over the columns before this one.
const CONNECTIONS: usize = 8;
/// The important ones first.
const IMPORTANCE: [usize; COLUMNS] = [0, 7, 5, 8, 2, 6, 9, NODE, 3, SHARE];
/// Characters of a Node's name that tell something.
const LEAST_OF_NODE: usize = 12;
/// Characters of a bar.
const BAR: usize = 20;
/// Columns whose texts begin at the left.
const LEFT: [usize; 4] = [0, NODE, 2, SHARE];

/// Draws it; `lately` is what its ports got lately, in their order.
pub fn service(frame: &mut Frame<'_>, area: Rect, view: &View, facts: &ServiceFacts, lately: &[Spread]) {
    let title = title(facts, area);
    let [head, body] = Layout::vertical([Constraint::Length(title.len() as u16), Constraint::Min(1)]).areas(area);
    frame.render_widget(Paragraph::new(Text::from(title)), head);

    let nothing = Spread::default();
    let ports: Vec<_> =
        facts.ports.iter().enumerate().map(|(at, port)| (port, lately.get(at).unwrap_or(&nothing))).collect();
    let texts: Vec<Vec<[String; COLUMNS]>> = ports
        .iter()
        .map(|(port, spread)| port.endpoints.iter().map(|endpoint| cells(endpoint, spread)).collect())
        .collect();
    let room = usize::from(area.width);
    let shown = shown(&ports, &texts, room);
    let over: Vec<usize> = shown.iter().filter(|(at, _)| *at < CONNECTIONS).map(|(_, given)| given + 1).collect();
    let rows = ports.iter().zip(&texts).flat_map(|((port, spread), rows)| {
        let text = port_in(port, spread, over.iter().sum::<usize>().saturating_sub(1));
        let numbers = [counted(port.connections), counted(port.active)];
        let rest = shown
            .iter()
            .filter(|(at, _)| *at >= CONNECTIONS)
            .map(move |(at, _)| right(numbers[*at - CONNECTIONS].clone()));
        let first = Cell::from(text).column_span(over.len() as u16);
        let first = Row::new(std::iter::once(first).chain(rest)).style(Style::new().fg(Color::Cyan));
        std::iter::once(first)
            .chain(rows.iter().map(|texts| Row::new(shown.iter().map(|(at, given)| cell(*at, &texts[*at], *given)))))
    });
    let heads = shown.iter().map(|(at, given)| cell(*at, HEADS[*at], *given));
    let widths = shown.iter().map(|(_, given)| Constraint::Length(u16::try_from(*given).unwrap_or(u16::MAX)));
    let table = Table::new(rows, widths).header(Row::new(heads).style(Modifier::UNDERLINED));
    frame.render_stateful_widget(table, body, &mut TableState::new().with_offset(view.row));
}

fn title(facts: &ServiceFacts, area: Rect) -> Vec<Line<'static>> {
    let reason = facts.health.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let policies = &facts.policies;
    let affinity = policies.affinity_seconds.map(|time| format!(", clients kept {time} s")).unwrap_or_default();
    let lines = [
        Line::from(vec![
            Span::from(format!("{}/{}", facts.namespace, facts.name)).bold(),
            Span::from(format!(" {} ", facts.kind)),
            Span::from(format!("{}{reason}", facts.health.state.as_str())).fg(color(facts.health.state)),
        ]),
        Line::from(format!("traffic policy: internal {}, external {}{affinity}", policies.internal, policies.external)),
    ];
    let lines = lines.iter().flat_map(|line| wrap(line, area.width.into())).collect();
    // The table has half of the room at least.
    at_most(lines, usize::from(area.height / 2).max(1))
}

fn cells(endpoint: &EndpointFacts, spread: &Spread) -> [String; COLUMNS] {
    let lately = spread.share(&endpoint.address);
    [
        format!("  {}", endpoint.address),
        endpoint.node.clone().unwrap_or_else(|| "-".to_owned()),
        state(endpoint).to_owned(),
        endpoint.weight.to_string(),
        bar(endpoint, lately, BAR),
        percent(lately),
        percent(endpoint.share),
        promised(endpoint),
        counted(endpoint.connections),
        counted(endpoint.active),
    ]
}

/// Which columns there is room for, and how wide each is.
fn shown(ports: &[(&PortFacts, &Spread)], texts: &[Vec<[String; COLUMNS]>], room: usize) -> Vec<(usize, usize)> {
    let of_ports = |at: usize| {
        let number = |port: &PortFacts| counted(if at == CONNECTIONS { port.connections } else { port.active });
        let longest = ports.iter().map(|(port, _)| width(&number(port))).max().unwrap_or_default();
        if at >= CONNECTIONS { longest } else { 0 }
    };
    let whole = |at: usize| {
        let longest = texts.iter().flatten().map(|row| width(&row[at])).max().unwrap_or_default();
        longest.max(HEADS[at].len()).max(of_ports(at))
    };
    let least = |at| if at == NODE { LEAST_OF_NODE } else { usize::MAX };
    let all = std::array::from_fn::<_, COLUMNS, _>(|at| Column { whole: whole(at), least: least(at) });
    columns(&all, &IMPORTANCE, room)
}

fn cell(at: usize, text: &str, given: usize) -> Cell<'static> {
    if LEFT.contains(&at) { Cell::from(cut(text, given)) } else { right(text) }
}
