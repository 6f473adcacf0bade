// server.js PORT: GET /N answers N bytes, in pieces; POST answers the body's SHA-256.
'use strict';
const http = require('http');
const crypto = require('crypto');

const block = Buffer.alloc(1 << 16, 0);
for (let i = 0; i < block.length; i++) block[i] = (i * 2654435761) >>> 11 & 0xff;

const server = http.createServer((request, response) => {
    if (request.method === 'POST') {
        const digest = crypto.createHash('sha256');
        request.on('data', (piece) => digest.update(piece));
        request.on('end', () => response.end(digest.digest('hex')));
        return;
    }
    let left = Number(request.url.slice(1));
    response.setHeader('Content-Length', left);
    const more = () => {
        while (left > 0) {
            const piece = block.subarray(0, Math.min(left, block.length));
            left -= piece.length;
            if (!response.write(piece)) { response.once('drain', more); return; }
        }
        response.end();
    };
    more();
});
server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1');
process.on('SIGTERM', () => { server.close(() => process.exit(0)); server.closeAllConnections(); });
