//! A terminal's screen as a picture: SVG, a few kilobytes, with text that can be searched and copied.

use std::fmt::Write as _;

use vt100::Color;

/// A character's width and a line's height, in pixels, of a font that has characters of 14.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 18.0;
/// Around the text.
const MARGIN: f32 = 12.0;
const PAPER: &str = "#14161b";
const INK: &str = "#d7dae0";
/// The eight colours of a terminal, on a dark ground.
const COLORS: [&str; 8] = ["#3b4048", "#f07178", "#8bd06a", "#e5c07b", "#61afef", "#c792ea", "#56c8d8", "#d7dae0"];

/// Characters beside each other that look alike.
struct Run {
    column: u16,
    text: String,
    ink: &'static str,
    paper: &'static str,
    bold: bool,
    underline: bool,
}

/// The screen as it is; the cursor is not shown.
pub fn svg(screen: &vt100::Screen) -> String {
    let (rows, columns) = screen.size();
    let width = f32::from(columns.get()) * WIDTH + 2.0 * MARGIN;
    let height = f32::from(rows.get()) * HEIGHT + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"14\" xml:space=\"preserve\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    for row in 0..rows.get() {
        let top = MARGIN + f32::from(row) * HEIGHT;
        for run in runs(screen, row, columns.get()) {
            let left = MARGIN + f32::from(run.column) * WIDTH;
            let length = run.text.chars().count() as f32 * WIDTH;
            // Writing to a String cannot fail.
            if run.paper != PAPER {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{HEIGHT}\" fill=\"{}\"/>",
                    run.paper
                );
            }
            if run.text.trim().is_empty() && !run.underline {
                continue;
            }
            let _ = write!(svg, "<text x=\"{left:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\"", top + 13.5);
            let _ = write!(svg, " fill=\"{}\"", run.ink);
            svg += if run.bold { " font-weight=\"bold\"" } else { "" };
            svg += if run.underline { " text-decoration=\"underline\"" } else { "" };
            let _ = writeln!(svg, ">{}</text>", escaped(&run.text));
        }
    }
    svg + "</svg>\n"
}

fn runs(screen: &vt100::Screen, row: u16, columns: u16) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for column in 0..columns {
        let Some(cell) = screen.cell(row, column) else { continue };
        let text = if cell.has_contents() { cell.contents() } else { " " };
        let (ink, paper) = match cell.inverse() {
            true => (color(cell.bgcolor(), PAPER), color(cell.fgcolor(), INK)),
            false => (color(cell.fgcolor(), INK), color(cell.bgcolor(), PAPER)),
        };
        let (bold, underline) = (cell.bold(), cell.underline());
        match runs.last_mut() {
            Some(run) if (run.ink, run.paper, run.bold, run.underline) == (ink, paper, bold, underline) => {
                run.text += text;
            }
            _ => runs.push(Run { column, text: text.to_owned(), ink, paper, bold, underline }),
        }
    }
    // What is behind the last letter is not seen.
    for run in runs.last_mut().into_iter().filter(|run| run.paper == PAPER && !run.underline) {
        run.text.truncate(run.text.trim_end().len());
    }
    runs
}

fn color(color: Color, default: &'static str) -> &'static str {
    match color {
        Color::Idx(number) => COLORS.get(usize::from(number % 8)).copied().unwrap_or(default),
        Color::Default | Color::Rgb(..) => default,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;

    #[test]
    fn a_screen_is_drawn_in_runs_of_what_looks_alike() {
        let mut parser = vt100::Parser::new(NonZero::new(2).unwrap(), NonZero::new(20).unwrap(), 0);
        parser.process(b"\x1b[1mhead\x1b[0m \x1b[32mok\x1b[0m\r\n\x1b[7ma<b&c\x1b[0m");
        let svg = svg(parser.screen());
        assert!(svg.contains(" font-weight=\"bold\">head</text>"), "{svg}");
        assert!(svg.contains(&format!("fill=\"{}\">ok</text>", COLORS[2])), "{svg}");
        assert!(svg.contains(&format!("height=\"18\" fill=\"{INK}\"/>")), "{svg}");
        assert!(svg.contains(">a&lt;b&amp;c</text>"), "{svg}");
        assert_eq!(svg.matches("<text").count(), 3, "{svg}");
    }
}
