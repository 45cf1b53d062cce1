//! Shows an error as a page if a person opened the address in a browser. Scripts get JSON. Does no I/O.

use serde_json::Value;

use super::request::Head;
use super::response::Response;

/// Returns the response as HTML if it is a JSON error and the browser asks for a page. Returns any other response
/// unchanged.
pub(super) fn for_browser(head: &Head<'_>, response: Response) -> Response {
    let asks_for_page = matches!(head.method, "GET" | "HEAD")
        && head.accept.is_some_and(|kinds| kinds.split(',').any(|kind| kind.trim().starts_with("text/html")));
    if !asks_for_page || response.status < 400 || response.content_type != Some("application/json") {
        return response;
    }
    let error: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let Some(message) = error.get("error").and_then(Value::as_str) else { return response };
    let title = match response.status {
        401 => "Token required",
        403 => "Refused",
        404 => "Not found",
        429 => "Too many attempts",
        503 => "Not available now",
        _ => "Error",
    };
    // The address is relative, because a proxy may serve the page below another path.
    let depth = head.path.matches('/').count().saturating_sub(1);
    let home = if depth <= DEPTH_MAX { format!("./{}", "../".repeat(depth)) } else { "/".to_owned() };
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<h1>{title}</h1>\n<p>{}</p>\n<p><a href=\"{home}\">Open the camera</a></p>\n",
        escaped(message)
    );
    Response { content_type: Some("text/html; charset=utf-8"), body: page.into(), ..response }
}

/// Depth of a path above which the link to the page is absolute, so that no caller makes the page long.
const DEPTH_MAX: usize = 8; // local bound

/// Returns the text with the characters replaced that have a meaning in HTML.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut page, letter| {
        match letter {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            _ => page.push(letter),
        }
        page
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

    fn text(head: &Head<'_>, message: &str) -> (Option<&'static str>, String) {
        let response = for_browser(head, Response::error(403, "a_code", message));
        (response.content_type, String::from_utf8(response.body.to_vec()).unwrap())
    }

    #[test]
    fn a_browser_gets_a_page_and_a_script_gets_json() {
        let browser = Head { method: "GET", accept: Some(BROWSER), ..Head::default() };
        let (kind, page) = text(&browser, "not <b>here</b> & \"now\"");
        assert_eq!(kind, Some("text/html; charset=utf-8"));
        assert!(page.contains("<p>not &lt;b&gt;here&lt;/b&gt; &amp; &quot;now&quot;</p>"), "{page}");
        for script in [
            Head { method: "GET", accept: Some("*/*"), ..Head::default() },
            Head { method: "GET", ..Head::default() },
            Head { method: "POST", accept: Some(BROWSER), ..Head::default() },
        ] {
            assert_eq!(text(&script, "x").0, Some("application/json"));
        }
    }

    #[test]
    fn the_page_leads_back_to_the_camera() {
        for (path, link) in
            [("/nothing", "\"./\""), ("/api/recordings/a.mp4", "\"./../../\""), (&*"/".repeat(100), "\"/\"")]
        {
            let head = Head { method: "GET", path, accept: Some(BROWSER), ..Head::default() };
            let page = text(&head, "x").1;
            assert!(page.contains(&format!("<a href={link}>")), "{page}");
        }
    }

    #[test]
    fn answers_that_are_no_errors_stay_as_they_are() {
        let browser = Head { method: "GET", accept: Some(BROWSER), ..Head::default() };
        let answer = Response::json(200, &serde_json::json!({ "error": "the last recording" }));
        assert_eq!(for_browser(&browser, answer.clone()), answer);
        let waiting = Response::json(503, &serde_json::json!({ "status": "waiting" }));
        assert_eq!(for_browser(&browser, waiting.clone()), waiting);
    }
}
