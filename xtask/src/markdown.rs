//! Reading Markdown: its fenced blocks and its links, as far as this repository's pages need it.

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// Line of the opening fence, from 1.
    pub(crate) line: usize,
    /// What follows the fence: a language, then words for the tools, which GitHub does not show.
    pub(crate) info: String,
    /// What is inside.
    pub(crate) text: String,
    /// Whether nothing but empty lines stands between the block before and this one.
    pub(crate) follows_block: bool,
}

/// The fenced blocks of a page, in order. Those of a list item lose its indentation.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    let mut since_block = false;
    for (number, line) in page.lines().enumerate() {
        let content = line.trim_start();
        match open.take() {
            Some((block, _)) if content == "```" => {
                blocks.push(block);
                since_block = true;
            }
            Some((mut block, indent)) => {
                block.text.push_str(line.get(indent..).unwrap_or_default());
                block.text.push('\n');
                open = Some((block, indent));
            }
            None => {
                if let Some(info) = content.strip_prefix("```") {
                    let info = info.trim().to_owned();
                    let block = Block {
                        line: number + 1,
                        info,
                        text: String::new(),
                        follows_block: since_block,
                    };
                    open = Some((block, line.len() - content.len()));
                } else if !content.is_empty() {
                    since_block = false;
                }
            }
        }
    }
    blocks.extend(open.map(|(block, _)| block));
    blocks
}

/// The targets of a page's links and pictures, with their lines, outside of blocks and code.
#[cfg(test)]
fn links(page: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut is_inside = false;
    for (number, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_inside = !is_inside;
        }
        if is_inside {
            continue;
        }
        // Every other piece between backquotes is code.
        for text in line.split('`').step_by(2) {
            for rest in text.split("](").skip(1) {
                let target = rest.split([')', ' ']).next().unwrap_or_default();
                links.push((number + 1, target.to_owned()));
            }
        }
    }
    links
}

/// The anchors that GitHub gives a page's headings, and those written as `<a id="…">`.
#[cfg(test)]
fn anchors(page: &str) -> Vec<String> {
    let mut anchors = Vec::new();
    let mut is_inside = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_inside = !is_inside;
        }
        if is_inside {
            continue;
        }
        anchors.extend(
            line.split("<a id=\"")
                .skip(1)
                .filter_map(|rest| rest.split_once('"').map(|(id, _)| id.to_owned())),
        );
        let Some(heading) = line.strip_prefix('#') else { continue };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        anchors.push(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{examples, root};

    #[test]
    fn blocks_have_their_words_and_know_what_they_follow() {
        let page =
            "a\n```sh\none\n```\n\n```json output\n{}\n```\ntext\n  ```toml\n  x = 1\n  ```\n";
        let block = |line, info: &str, text: &str, follows_block| Block {
            line,
            info: info.to_owned(),
            text: text.to_owned(),
            follows_block,
        };
        assert_eq!(
            blocks(page),
            [
                block(2, "sh", "one\n", false),
                block(6, "json output", "{}\n", true),
                block(10, "toml", "x = 1\n", false),
            ]
        );
    }

    #[test]
    fn links_in_code_are_none() {
        let page = "[a](b.md) `[c](d.md)` ![e](f.svg \"g\")\n```\n[h](i.md)\n```\n";
        assert_eq!(links(page), [(1, "b.md".to_owned()), (1, "f.svg".to_owned())]);
        assert_eq!(anchors("# The wire, P-1\n<a id=\"p-2\"></a>"), ["the-wire-p-1", "p-2"]);
    }

    #[test]
    fn every_link_between_the_pages_leads_somewhere() {
        let mut broken = Vec::new();
        for path in examples::pages().unwrap() {
            let page = std::fs::read_to_string(&path).unwrap();
            for (line, target) in links(&page) {
                if target.contains("://") {
                    continue;
                }
                let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
                let file = if file.is_empty() {
                    path.clone()
                } else {
                    path.parent().unwrap_or(Path::new("")).join(file)
                };
                let is_there = file.exists()
                    && (anchor.is_empty()
                        || anchors(&std::fs::read_to_string(&file).unwrap())
                            .iter()
                            .any(|known| known == anchor));
                if !is_there {
                    let page = path.strip_prefix(root()).unwrap_or(&path).display();
                    broken.push(format!("{page}:{line}: {target}"));
                }
            }
        }
        assert!(broken.is_empty(), "{broken:#?}");
    }

    #[test]
    fn the_clauses_of_the_protocol_are_numbered_without_a_hole_and_all_in_the_index() {
        let page = std::fs::read_to_string(root().join("docs/protocol.md")).unwrap();
        let clause = |line: &str| -> Option<u32> {
            line.strip_prefix("**P-")?.split_once("**")?.0.parse().ok()
        };
        // A clause keeps its number for ever, so a new one among old ones has the next free number.
        let mut numbers: Vec<u32> = page.lines().filter_map(clause).collect();
        numbers.sort_unstable();
        for number in &numbers {
            assert!(page.contains(&format!("<a id=\"p-{number}\"></a>\n**P-{number}** ")));
        }
        let expected: Vec<u32> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, expected);
        let (_, index) = page.split_once("## Clause index").unwrap();
        // Rows are ranges: `P-1 to P-12`, one behind the other.
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for range in index.lines().filter(|line| line.starts_with("| ")).flat_map(|l| l.split(','))
        {
            let numbers = range.split("P-").skip(1).map(|words| {
                words.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap()
            });
            let numbers: Vec<u32> = numbers.collect();
            ranges.extend(numbers.first().copied().zip(numbers.last().copied()));
        }
        let mut covered: Vec<u32> = ranges.iter().flat_map(|(from, to)| *from..=*to).collect();
        covered.sort_unstable();
        assert_eq!(covered, expected);
    }
}
