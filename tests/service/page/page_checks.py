"""What a script in the browser looks for in the page; where nothing is wrong it finds nothing."""

TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".scroll, svg, .editor, .hidden, .skip"))
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
    .map(e => e.outerHTML.slice(0, 90))"""

TOO_SMALL = """() => [...document.querySelectorAll("button, input:not([type=checkbox]), select, summary")]
    .filter(e => e.getClientRects().length && e.getBoundingClientRect().height < 36)
    .map(e => e.outerHTML.slice(0, 90))"""

NAMELESS = """() =>
    [...document.querySelectorAll("a, button, input, select, textarea, summary, [role=region]")]
    .filter(e => ![e.getAttribute("aria-label"), e.labels?.[0]?.textContent, e.textContent]
        .some(name => name?.trim()))
    .map(e => e.outerHTML.slice(0, 90))"""

STRUCTURE = """() => ({
    main: document.querySelectorAll("main").length,
    nav: document.querySelectorAll("nav[aria-label]").length,
    h1: document.querySelectorAll("h1").length,
    lang: document.documentElement.lang,
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    levels: [...document.querySelectorAll("h1, h2, h3, h4")]
        .filter(e => e.getClientRects().length).map(e => +e.tagName[1]),
    broken: ["aria-labelledby", "aria-describedby", "for"]
        .flatMap(n => [...document.querySelectorAll(`[${n}]`)].flatMap(e => e.getAttribute(n).split(" ")))
        .filter(id => id && !document.getElementById(id)) })"""

POOR_CONTRAST = """() => {
    const parse = c => { const p = c.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p; };
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) =>
        0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const ground = e => {
        const color = e ? parse(getComputedStyle(e).backgroundColor) : [255, 255, 255, 1];
        return color[3] === 1 ? color : ground(e.parentElement);
    };
    const ratio = e => {
        const style = getComputedStyle(e);
        const ink = parse(e.closest("svg") ? style.fill : style.color);
        const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    return [...document.querySelectorAll("body *")]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .filter(e => e.getClientRects().length && !e.closest("button:disabled, .hidden, .mark"))
        .filter(e => ratio(e) < 4.5)
        .map(e => `${ratio(e).toFixed(2)} ${e.outerHTML.slice(0, 80)}`); }"""
"""Text whose colour is too near to the ground it stands on (WCAG 2.2, 1.4.3)."""
