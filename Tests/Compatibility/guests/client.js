// client.js PORT: requests over four kept connections; prints what came, and how many connections it took.
'use strict';
const http = require('http');
const crypto = require('crypto');

const port = Number(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const sockets = new Set();

function ask(method, path, body) {
    return new Promise((resolve, reject) => {
        const request = http.request({ host: '127.0.0.1', port, agent, method, path }, (response) => {
            const digest = crypto.createHash('sha256');
            let length = 0;
            response.on('data', (piece) => { digest.update(piece); length += piece.length; });
            response.on('end', () => resolve(`${response.statusCode} ${length} ${digest.digest('hex')}`));
            response.on('error', reject);
        });
        request.on('socket', (socket) => sockets.add(socket));
        request.on('error', reject);
        request.end(body);
    });
}

async function worker(number) {
    const said = [];
    for (let round = 0; round < 60; round++) {
        said.push(await ask('GET', `/${number * 1000 + round * 577}`));
        said.push(await ask('POST', '/', Buffer.alloc(100 + round * 1999, number + round)));
    }
    said.push(await ask('GET', `/${24 << 20}`));
    said.push(await ask('POST', '/', Buffer.alloc(12 << 20, number)));
    return said;
}

Promise.all([0, 1, 2, 3].map(worker)).then((said) => {
    console.log(crypto.createHash('sha256').update(JSON.stringify(said)).digest('hex'), said.flat().length, sockets.size);
    agent.destroy();
});
